"""Known mistakes in gated units, sums, tokens and positions. A new mistake is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.traps.operations.parts import Call, call_of, is_vector, made, name_of, number, orders, same, scaled, through
from parity.traps.planting import Values
from parity.traps.trap import Argument, Trap

ACTIVATIONS = ("silu", "gelu", "sigmoid", "relu", "tanh", "leaky_relu", "elu", "mish", "softplus", "hardswish")

# Functions that count the edges of each node.
COUNTS = ("index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "bincount", "sum", "clamp")

# --- gated units


def _gated(call: Call) -> tuple[Call, Tensor] | None:
    """The activation and the other factor of a product, neither made of the other."""
    for gate, other in orders(call):
        active = made(gate, *ACTIVATIONS)
        if active is None or not isinstance(other, Tensor) or made(other, *ACTIVATIONS) is not None:
            continue
        if active[0].shape == other.shape and through(active[0]) is not through(other):
            return active, other
    return None


def _gate(change: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Another combination of an activation, its input, and the other factor."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        found = _gated(Call("mul", function, args, kw))
        if found is None:
            return None
        active, other = found
        return change(lambda x: active.function(x, *active.args[1:], **active.kw), active[0], other)

    return plant


def _square(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The ReLU that is squared."""
    call = Call(name_of(function), function, args, kw)
    twice = call.name == "square" or number(call.argument(1, "exponent")) == 2 or call.argument(1, "other") is call[0]
    return call[0].clone() if twice and made(call[0], "relu", "leaky_relu") else None


def _own_gelu(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Another GELU, if a product is the form with a tanh, or with a sigmoid."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        y, x = function(*args, **kw), _gelu_input(Call("mul", function, args, kw))
        if x is None or not any(same(y, form(x)) for form in (_tanh_form, _quick_form, F.gelu)):
            return None
        new = change(x)
        return None if same(new, y) else new

    return plant


def _gelu_input(call: Call) -> Tensor | None:
    """The input of a GELU that ends with this product."""
    for part, other in orders(call):
        if made(other, "sigmoid", "add", "mul") is None or not isinstance(part, Tensor):
            continue
        half = scaled(part)
        return through(half[0]) if half is not None and half[1] == 0.5 else through(part)
    return None


def _tanh_form(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_form(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# --- residual sums, tokens, positions


def _summands(function: Any, args: Values, kw: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    a, b = args[0], args[1] if len(args) > 1 else kw.get("other")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None
    return (a, b) if a.ndim > 1 and a.shape == b.shape else None


def _sum(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Another combination of two summands."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        parts = _summands(function, args, kw)
        return None if parts is None else change(*parts)

    return plant


def _table_lost(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The sum without a table of positions, which is the same for all examples."""
    call = Call("add", function, args, kw)
    for x, table in orders(call):
        held = isinstance(table, nn.Parameter) or call_of(table) is None or made(table, "getitem", "unsqueeze")
        if not isinstance(x, Tensor) or not isinstance(table, Tensor) or not held or x.ndim != 3:
            continue
        if table.shape[-2:] == x.shape[-2:] and table.numel() < x.numel() and table.is_floating_point():
            return x.clone()
    return None


def _capped_input(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The tanh of a cap, multiplied by the values that are capped."""
    for factor, tanh in orders(Call("mul", function, args, kw)):
        cap, active = number(factor), made(tanh, "tanh")
        inner = scaled(active[0]) if active is not None else None
        if cap is not None and inner is not None and abs(inner[1] * cap - 1) < 1e-9:
            return inner[0] * tanh
    return None


def _degrees(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Other degrees of the nodes of a graph, whose inverse root is taken."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        call = Call(name_of(function), function, args, kw)
        if call.name == "pow" and number(call.argument(1, "exponent")) != -0.5:
            return None
        degrees = call[0]
        if made(degrees, *COUNTS, "getitem", "index_select") is None or not _whole(degrees):
            return None
        return function(change(degrees), *args[1:], **kw)

    return plant


def _whole(x: Tensor) -> bool:
    return bool(x.ndim and (x >= 0).all() and (x == x.round()).all() and (x > 0).any())


def _gain_lost(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The product without a factor for each feature."""
    for x, gain in orders(Call("mul", function, args, kw)):
        if isinstance(x, Tensor) and is_vector(gain) and x.ndim > 1:
            return x.clone()
    return None


def _shift_lost(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The sum without a number for each feature."""
    for x, shift in orders(Call("add", function, args, kw)):
        if isinstance(x, Tensor) and is_vector(shift) and x.ndim > 1:
            return x.clone()
    return None


def _by_root_of_width(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The embedding without the root of its width as a factor."""
    for x, factor in orders(Call("mul", function, args, kw)):
        by = number(factor)
        if by is not None and isinstance(x, Tensor) and abs(by * by / x.shape[-1] - 1) < 1e-6:
            return x.clone()
    return None


def _twice_by_root_of_width(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    x = _by_root_of_width(function, args, kw)
    return None if x is None else x * x.shape[-1]


def _scaled_logits(function: Any, args: Values, kw: dict[str, Any]) -> Tensor:
    """The product with a matrix, divided by the root of its width."""
    return function(*args, **kw) / args[0].shape[-1] ** 0.5


def _pooled_mean(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The mean of all tokens, if PyTorch's model takes the first."""
    x, index = args
    first = isinstance(index, tuple) and len(index) == 2 and index[1] in (0, -1) and not isinstance(index[1], bool)
    return x.mean(1) if first and index[0] == slice(None) and x.ndim == 3 else None


def _first_token(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The first token, if PyTorch's model takes the mean of all."""
    dim = args[1] if len(args) > 1 else kw.get("dim")
    return args[0].select(1, 0) if args[0].ndim == 3 and dim in (1, -2, (1,), [1]) else None


def _all_tokens(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The mean of all tokens, if PyTorch's model leaves the first out."""
    part = made(args[0], "getitem")
    if part is None or args[0].ndim != 3 or args[0].shape[1] >= part[0].shape[1]:
        return None
    return function(part[0], *args[1:], **kw)


def _masked_sum(call: Call) -> tuple[Tensor, Tensor, Any] | None:
    """The numbers, the mask and the axis of a sum over time that is divided by how much the mask keeps."""
    total = made(call[0], "sum")
    product = made(total[0], "mul") if total else None
    count = call.argument(1, "other")
    counted = made(count, "sum", "clamp", "clamp_min") if isinstance(count, Tensor) else None
    if total is None or product is None or counted is None:
        return None
    for x, mask in orders(product):
        if isinstance(mask, Tensor) and not made(mask, "softmax") and bool(((mask == 0) | (mask == 1)).all()):
            return x, mask.expand(x.shape), total.argument(1, "dim")
    return None


def _mean(change: Callable[[Tensor, Tensor, Any], Tensor]) -> Callable[..., Any]:
    """Another mean, if PyTorch's model takes the mean of the tokens that a mask keeps."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        found = _masked_sum(Call("div", function, args, kw))
        return None if found is None else change(*found)

    return plant


def _shifted_frequencies(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Frequencies that end one step earlier, or later: exp(−c · i / n) instead of exp(−c · i / (n − 1))."""
    x = args[0]
    if x.ndim < 1 or x.shape[-1] < 3 or x.numel() != x.shape[-1]:
        return None
    flat, n = x.flatten(), x.shape[-1]
    step = flat[1] - flat[0]
    if abs(flat[0]) > 1e-9 or step >= 0 or not same(flat, step * torch.arange(n)):
        return None
    for shift, other in ((1, 0), (0, 1)):
        base = float(-step * (n - shift))
        if abs(base - math.log(1e4)) < 1e-4:
            return function(x * (n - shift) / (n - other))
    return None


def _row(name: str, where: Sequence[str], plant: Callable[..., Any], text: str, mend: str, source: str) -> Trap:
    return Trap(name, "between", tuple(where), plant, text, mend, source)


GATES = (
    _row(
        "gate-exchanged",
        ("mul",),
        _gate(lambda act, a, b: act(b) * a),
        "the activation is applied to the other factor of a gated unit",
        "apply the activation to the gate: act(gate) * up",
        "ml-explore/mlx-lm#767",
    ),
    _row(
        "gate-activation-of-product",
        ("mul",),
        _gate(lambda act, a, b: act(a * b)),
        "the activation is applied to the product",
        "apply the activation to the gate alone: act(gate) * up",
        "Nijikadesu/breakdown-minimind#3",
    ),
    _row(
        "gate-missing",
        ("mul",),
        _gate(lambda act, a, b: act(a)),
        "the activation is not multiplied by the other part of a gated unit",
        "multiply by the other part: act(gate) * up",
        "Shazeer 2020",
    ),
    _row(
        "gate-added",
        ("mul",),
        _gate(lambda act, a, b: act(a) + b),
        "the parts of a gated unit are added",
        "multiply the two parts: act(gate) * up",
        "Shazeer 2020",
    ),
    _row(
        "cap-is-input",
        ("mul",),
        _capped_input,
        "the tanh of a soft cap is multiplied by what is capped; PyTorch's model multiplies by the cap",
        "cap * jnp.tanh(x / cap)",
        "unslothai/unsloth-zoo#593",
    ),
    _row(
        "relu-square-missing",
        ("pow", "square", "mul"),
        _square,
        "the ReLU is not squared",
        "square the ReLU: jnp.square(nn.relu(x))",
        "So et al. 2021",
    ),
    replace(
        _row(
            "written-gelu-is-exact",
            ("mul",),
            _own_gelu(F.gelu),
            "the GELU uses the error function; PyTorch's model has written out an approximation",
            "pass approximate=True to nn.gelu, or write out the form of PyTorch's model",
            "kyutai-labs/pocket-tts#278",
        ),
        arguments=(Argument("approximate", "gelu", True),),
    ),
    _row(
        "written-gelu-is-tanh",
        ("mul",),
        _own_gelu(_tanh_form),
        "the GELU uses tanh; PyTorch's model has written out another form",
        "write out the form of PyTorch's model, or pass approximate=False to nn.gelu if it is exact",
        "clementpoiret/Equimo@3b2327a",
    ),
)

SUMS_TOKENS_AND_POSITIONS = (
    _row(
        "residual-twice",
        ("add",),
        _sum(lambda a, b: 2 * a + b),
        "the first part of a sum is added twice",
        "add the first part once",
        "yakhyo/darknet-pytorch#2",
    ),
    _row(
        "residual-is-branch",
        ("add",),
        _sum(lambda a, b: 2 * b),
        "the branch is added to itself; PyTorch's model adds it to what went into it",
        "keep the input in a variable of its own, and add the branch to it",
        "facebookresearch/multimodal#305",
    ),
    _row(
        "position-table-missing",
        ("add",),
        _table_lost,
        "no table of positions is added",
        "add the position embedding",
        "clementpoiret/Equimo@f70bb27",
    ),
    _row(
        "edges-counted-twice",
        ("rsqrt", "pow"),
        _degrees(lambda degrees: 2 * degrees),
        "each edge of the graph counts twice in the degrees of its nodes",
        "count each edge once",
        "alexOarga/haiku-geometric@829fb69",
    ),
    _row(
        "gain-missing",
        ("mul",),
        _gain_lost,
        "the features are not multiplied by their gains, as LayerScale does",
        "multiply the features by their gains",
        "riccardomusmeci/mlx-image#26",
    ),
    _row(
        "shift-missing",
        ("add",),
        _shift_lost,
        "no bias is added to the features",
        "add the bias to the features",
        "bclarkson-code/Tricycle#19",
    ),
    _row(
        "embedding-scale-missing",
        ("mul",),
        _by_root_of_width,
        "the embedding is not multiplied by the root of its width",
        "multiply the embedding by jnp.sqrt(width)",
        "tenstorrent/tt-metal#22812",
    ),
    _row(
        "embedding-scaled-twice",
        ("mul",),
        _twice_by_root_of_width,
        "the embedding is multiplied by the root of its width twice",
        "multiply the embedding by jnp.sqrt(width) only once",
        "TensorAuto/OpenTau#179",
    ),
    _row(
        "logits-divided-by-root",
        ("linear", "matmul"),
        _scaled_logits,
        "the product with the tied embedding is divided by the root of its width, as T5 does",
        "leave the product unscaled",
        "huggingface/transformers#43681",
    ),
    _row(
        "first-token-is-mean",
        ("getitem",),
        _pooled_mean,
        "the mean of the tokens is taken; PyTorch's model takes one",
        "take the token that PyTorch's model takes: x[:, 0], or x[:, -1]",
        "kyegomez/Vit-RGTS#10",
    ),
    _row(
        "mean-is-first-token",
        ("mean",),
        _first_token,
        "the first token is taken; PyTorch's model takes the mean of all",
        "take the mean of all tokens: x.mean(1)",
        "Dosovitskiy et al. 2021",
    ),
    _row(
        "mean-counts-class-token",
        ("mean",),
        _all_tokens,
        "the mean goes over all tokens; PyTorch's leaves the first ones out",
        "leave the first tokens out, as with one class token: x[:, 1:].mean(1)",
        "lucidrains/vit-pytorch#226",
    ),
    _row(
        "masked-mean-over-length",
        ("div",),
        _mean(lambda x, mask, dim: (x * mask).mean(dim)),
        "the sum of what the mask keeps is divided by the length",
        "divide by the number of tokens that the mask keeps: mask.sum(1)",
        "Reimers and Gurevych 2019",
    ),
    _row(
        "masked-mean-of-all",
        ("div",),
        _mean(lambda x, mask, dim: x.mean(dim)),
        "the mean goes over padding, too",
        "average only what the mask keeps: (x * mask).sum(1) / mask.sum(1)",
        "lanterndata/lantern_extras#91",
    ),
    _row(
        "wave-frequencies-shifted",
        ("exp",),
        _shifted_frequencies,
        "the last frequency of the sines is wrong: the step is divided by n instead of n − 1, or the other way round",
        "divide the exponents by n or n − 1, as PyTorch's model does (downscale_freq_shift)",
        "kohya-ss/sd-scripts#1187",
    ),
)
