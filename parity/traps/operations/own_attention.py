"""Known mistakes in attention, written as operations or called as one function. A new mistake is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.attention_parts import Attention, Step, attention_of
from parity.traps.operations.parts import Call, made
from parity.traps.planting import Values
from parity.traps.trap import Argument, Trap

HEADS = ("softmax", "scaled_dot_product_attention")


def _attention(change: Callable[[Attention], Attention | Tensor | None]) -> Callable[..., Any]:
    """Another value of an attention."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        attention = attention_of(function, args, kw)
        new = None if attention is None else change(attention)
        return new.value() if isinstance(new, Attention) else new

    return plant


def _scale(factor: Callable[[Attention, float], float]) -> Callable[[Attention], Attention | None]:
    """Another factor of the scores."""

    def change(attention: Attention) -> Attention | None:
        first = next((step for step in attention.steps if step.kind == "scale"), None)
        if first is None:
            return None
        new = factor(attention, first.value)
        if abs(new / first.value - 1) < 1e-9:
            return None
        return attention.with_step("scale", lambda step: replace(step, value=new) if step is first else step)

    return change


def _by_width(attention: Attention, scale: float) -> float:
    """The scale by the width of all heads; the old one if the heads have no axis of their own."""
    return (attention.depth * attention.scores.shape[1]) ** -0.5 if attention.scores.ndim > 3 else scale


def _added(attention: Attention, scale: float) -> Attention | None:
    """Add a factor if there is none."""
    if any(step.kind == "scale" for step in attention.steps):
        return None
    return replace(attention, steps=(Step("scale", scale), *attention.steps))


def _mask(change: Callable[[Tensor], Tensor | None], fill: float | None = None) -> Callable[[Attention], Any]:
    """Another mask."""

    def plant(attention: Attention) -> Attention | None:
        kept = attention.kept
        new = None if kept is None else change(kept)
        return None if kept is None or new is None or torch.equal(kept, new) else attention.masked(new, fill)

    return plant


def _square(n: int, m: int, diagonal: int) -> Tensor:
    return torch.ones(n, m, dtype=torch.bool).tril(diagonal)


def is_causal(kept: Tensor) -> bool:
    """Return whether no key after a query is kept."""
    n, m = kept.shape[-2:]
    return n > 1 and n == m and not (kept & ~_square(n, m, 0)).any()


def _causal(diagonal: int) -> Callable[[Tensor], Tensor | None]:
    """The causal mask with another diagonal; other masks stay."""

    def change(kept: Tensor) -> Tensor | None:
        if not is_causal(kept):
            return None
        n, m = kept.shape[-2:]
        keys = kept.any(-2, keepdim=True)
        return (keys | torch.zeros_like(kept)) & _square(n, m, diagonal) & (kept | ~_square(n, m, min(diagonal, 0)))

    return change


def _without_causal(kept: Tensor) -> Tensor | None:
    keys = kept.any(-2, keepdim=True)
    return keys.expand(kept.shape) if is_causal(kept) and not keys.all() else None


def _without_padding(kept: Tensor) -> Tensor | None:
    n, m = kept.shape[-2:]
    return _square(n, m, 0).expand(kept.shape) if is_causal(kept) and not kept.any(-2).all() else None


def window_of(kept: Tensor) -> int | None:
    """Return how many keys each query keeps among its own and those before it; None if the mask is not a window."""
    n, m = kept.shape[-2:]
    width = int(kept.sum(-1).max())
    band = _square(n, m, 0) & ~_square(n, m, -width)
    return width if n == m and width < n and torch.equal(kept, band.expand(kept.shape)) else None


def _window(change: Callable[[int, int], int]) -> Callable[[Tensor], Tensor | None]:
    """A window of another width."""

    def plant(kept: Tensor) -> Tensor | None:
        n, m = kept.shape[-2:]
        if (width := window_of(kept)) is None:
            return None
        return (_square(n, m, 0) & ~_square(n, m, -change(width, n))).expand(kept.shape)

    return plant


def _both_sides(kept: Tensor) -> Tensor | None:
    n, m = kept.shape[-2:]
    if (width := window_of(kept)) is None:
        return None
    return (_square(n, m, width - 1) & ~_square(n, m, -width)).expand(kept.shape)


def _aligned(kept: Tensor) -> Tensor | None:
    """The triangle at the other end, if there are more keys than queries."""
    n, m = kept.shape[-2:]
    for diagonal, other in ((0, m - n), (m - n, 0)):
        if n != m and torch.equal(kept, _square(n, m, diagonal).expand(kept.shape)):
            return _square(n, m, other).expand(kept.shape)
    return None


def _transposed(kept: Tensor) -> Tensor | None:
    return kept.mT if kept.shape[-1] == kept.shape[-2] else None


def _multiplied(attention: Attention) -> Tensor | None:
    """Masked scores are zero."""
    return None if (kept := attention.kept) is None else attention.masked(kept, 0.0).value()


def _afterwards(attention: Attention) -> Tensor | None:
    """The weights are masked, and sum to less than one."""
    if (kept := attention.kept) is None:
        return None
    return attention.value(attention.masked(None).weights() * kept)


def _added_as_ones(attention: Attention) -> Tensor | None:
    """One is added to the scores that are kept."""
    if (kept := attention.kept) is None:
        return None
    free = attention.masked(None)
    return attention.value(torch.softmax(free.logits() + kept.to(free.scores.dtype), -1))


def _empty_rows(value: Callable[[Tensor], Tensor]) -> Callable[[Attention], Tensor | None]:
    """Other weights of queries that keep no key."""

    def change(attention: Attention) -> Tensor | None:
        kept = attention.kept
        if kept is None or kept.any(-1).all():
            return None
        weights = attention.weights()
        return attention.value(torch.where(kept.any(-1, keepdim=True), weights, value(weights)))

    return change


def _cap_last(attention: Attention) -> Attention | None:
    """Apply the cap after the mask."""
    caps = tuple(step for step in attention.steps if step.kind == "cap")
    rest = tuple(step for step in attention.steps if step.kind != "cap")
    return replace(attention, steps=(*rest, *caps)) if caps and attention.kept is not None else None


def _bias_first(attention: Attention) -> Attention | None:
    """The bias is scaled with the scores."""
    kinds = [step.kind for step in attention.steps]
    if "bias" not in kinds or "scale" not in kinds or kinds.index("bias") < kinds.index("scale"):
        return None
    rest = (step for step in attention.steps if step.kind != "bias")
    return replace(attention, steps=(*(s for s in attention.steps if s.kind == "bias"), *rest))


def _bias_scaled_after(attention: Attention) -> Attention | None:
    """The bias is added after the scale."""
    kinds = [step.kind for step in attention.steps]
    if "bias" not in kinds or "scale" not in kinds or kinds.index("bias") > kinds.index("scale"):
        return None
    rest = (step for step in attention.steps if step.kind != "bias")
    return replace(attention, steps=(*rest, *(s for s in attention.steps if s.kind == "bias")))


def _changed(kind: str, change: Callable[[Step], Step | None]) -> Callable[[Attention], Attention | None]:
    return lambda attention: attention.with_step(kind, change)


def _turned(step: Step) -> Step | None:
    square = step.value.ndim > 1 and step.value.shape[-1] == step.value.shape[-2]
    return replace(step, value=step.value.mT) if square else step


def slopes_of(bias: Tensor) -> Tensor | None:
    """The slopes of ALiBi by head, if a bias (…, heads, queries, keys) is a slope times the distance."""
    if bias.ndim < 3 or bias.shape[-3] < 2 or not bias.is_floating_point():
        return None
    heads = bias.reshape(-1, *bias.shape[-3:])
    size = heads[0].abs()
    steps = torch.stack([one[one > 0].min() if (one > 0).any() else one.max() for one in size])
    units = heads / steps[:, None, None] if (steps > 0).all() else None
    whole = units is not None and torch.allclose(units, units[:, :1].round(), rtol=1e-9, atol=1e-9)
    return steps if whole else None


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of Press et al. 2022: if the number of heads is not a power of two, they come from two series."""
    power = 2 ** int(math.log2(heads))
    between = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)] + between


def _slopes(change: Callable[[int], Sequence[float]]) -> Callable[[Attention], Attention | None]:
    """Other slopes, if the bias has ALiBi's."""

    def plant(attention: Attention) -> Attention | None:
        bias = next((step.value for step in attention.steps if step.kind == "bias"), None)
        slopes = slopes_of(bias) if isinstance(bias, Tensor) else None
        if slopes is None or not torch.allclose(slopes, slopes.new_tensor(alibi_slopes(len(slopes))), rtol=1e-6):
            return None
        new = slopes.new_tensor(change(len(slopes)))
        if torch.allclose(new, slopes, rtol=1e-6):
            return None
        factor = (new / slopes)[:, None, None]
        return attention.with_step("bias", lambda step: replace(step, value=step.value * factor))

    return plant


def _without_sink(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The softmax of only the scores, if they contain a column that belongs to no key."""
    call = Call("softmax", function, args, kw)
    x, dim = call.argument(0, "input"), call.argument(1, "dim")
    shifted = made(x, "sub")
    joined = made(shifted[0] if shifted is not None else x, "cat")
    if x.ndim < 3 or dim not in (-1, x.ndim - 1) or joined is None:
        return None
    parts, axis = joined.argument(0, "tensors"), joined.argument(1, "dim", 0)
    if len(parts) != 2 or axis not in (-1, x.ndim - 1) or 1 not in (widths := [part.shape[-1] for part in parts]):
        return None
    sink = widths.index(1)
    weights = [torch.softmax(part, -1) if i != sink else torch.zeros_like(part) for i, part in enumerate(parts)]
    return torch.cat(weights, -1)


def _empty_rows_kept(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The weights of the softmax, if later code sets all weights of some queries to zero."""
    for x in args:
        if made(x, "softmax") is None or x.ndim < 3:
            continue
        value = function(*args, **kw)
        if not isinstance(value, Tensor) or x.shape != value.shape:
            continue
        lost = (value == 0).all(-1) & ~(x == 0).all(-1)
        return x.clone() if lost.any() and torch.equal(value[~lost], x[~lost]) else None
    return None


def _uniform(weights: Tensor) -> Tensor:
    return torch.full_like(weights, 1 / weights.shape[-1])


def _row(
    name: str,
    change: Callable[[Attention], Any],
    text: str,
    mend: str,
    source: str,
    arguments: tuple[Argument, ...] = (),
) -> Trap:
    return Trap(name, "between", HEADS, _attention(change), text, mend, source, arguments=arguments)


def _softmaxed(dim: int) -> Callable[[Attention], Attention | None]:
    return lambda attention: replace(attention, dim=dim) if attention.scores.ndim >= -dim else None


OWN_ATTENTION: Sequence[Trap] = (
    _row(
        "attention-scale-by-width",
        _scale(_by_width),
        "the scores are divided by the root of the model's width; PyTorch's model divides by that of a head's depth",
        "multiply the scores by 1 / jnp.sqrt(depth), with the depth of one head",
        "FrancescoSaverioZuppichini/ViT#1",
    ),
    _row(
        "attention-scaled-twice",
        _scale(lambda _, scale: scale**2),
        "the scores are scaled twice",
        "scale the queries or the scores, not both",
        "AI-Hypercomputer/maxtext@1f86bc030",
    ),
    _row(
        "attention-scale-without-root",
        _scale(lambda attention, _: 1 / attention.depth),
        "the scores are divided by the depth; PyTorch's model divides by its root",
        "multiply the scores by 1 / jnp.sqrt(depth)",
        "delzac/cntkx#10",
    ),
    _row(
        "attention-scale-power-of-two",
        _scale(lambda attention, _: 2.0 ** (-attention.depth / 2)),
        "the factor is 2 ** (-depth / 2); PyTorch's is depth ** -0.5",
        "multiply the scores by depth ** -0.5",
        "erfanzar/EasyDeL@eee6c3a9",
    ),
    _row(
        "attention-scale-added",
        lambda attention: _added(attention, attention.depth**-0.5),
        "the scores are divided by the root of the depth; PyTorch's model does not scale them",
        "pass scale=1.0 to jax.nn.dot_product_attention, or leave the scores unscaled, as in T5",
        "AI-Hypercomputer/maxtext@9c2cc66ce",
        arguments=(Argument("scale", "dot_product_attention", 1.0),),
    ),
    _row(
        "attention-scale-default",
        _scale(lambda attention, _: attention.depth**-0.5),
        "the scores are divided by the root of a head's depth, the default; PyTorch's model has another scale",
        "pass scale=, as the configuration gives it",
        "antonellof/ferrox#40",
        arguments=(Argument("scale", "dot_product_attention"),),
    ),
    _row(
        "attention-softmax-over-queries",
        _softmaxed(-2),
        "the softmax goes over the queries; PyTorch's over the keys",
        "pass axis=-1 to nn.softmax",
        "labmlai/annotated_deep_learning_paper_implementations#146",
        arguments=(Argument("axis", "softmax", -1),),
    ),
    _row(
        "attention-sees-next",
        _mask(_causal(1)),
        "each query sees the next key, too",
        "mask with jnp.tril and k=0, so that each query sees its own key and those before it",
        "RVC-Boss/GPT-SoVITS#965",
    ),
    _row(
        "attention-misses-itself",
        _mask(_causal(-1)),
        "no query sees its own key: the first one sees none, and gives NaN",
        "mask with jnp.tril and k=0, so that each query sees its own key and those before it",
        "pbloem/former#10",
    ),
    _row(
        "attention-misses-itself-finite",
        _mask(_causal(-1), fill=-1e30),
        "no query sees its own key; the first gives all keys the same weight",
        "mask with jnp.tril and k=0, so that each query sees its own key and those before it",
        "pbloem/former#10",
    ),
    _row(
        "attention-causal-mask-missing",
        _mask(_without_causal),
        "only padding is masked; PyTorch's model is causal, too",
        "combine the two masks with nn.combine_masks",
        "facebookresearch/xformers#1185",
    ),
    _row(
        "attention-padding-seen-too",
        _mask(_without_padding),
        "only later keys are masked; PyTorch's model masks padding, too",
        "combine the two masks with nn.combine_masks",
        "AI-Hypercomputer/maxtext#878",
    ),
    _row(
        "attention-mask-missing",
        lambda attention: attention.masked(None) if attention.kept is not None else None,
        "there is no mask",
        "mask the scores before the softmax",
        "facebookresearch/xformers#103",
    ),
    _row(
        "attention-mask-inverted",
        _mask(lambda kept: ~kept),
        "the keys that PyTorch's model masks are kept, and the others are masked",
        "invert the mask: in Flax, True allows attention",
        "lucidrains/halonet-pytorch#6",
    ),
    _row(
        "attention-mask-transposed",
        _mask(_transposed),
        "the mask's queries and keys are exchanged",
        "put queries before keys in the mask: (…, queries, keys)",
        "lsdefine/attention-is-all-you-need-keras#16",
    ),
    _row(
        "attention-masked-scores-zero",
        _multiplied,
        "masked scores are zero, and take part in the softmax",
        "fill the masked scores with −∞: jnp.where(mask, scores, -jnp.inf)",
        "georg-wolflein/good-features#1",
    ),
    _row(
        "attention-masked-afterwards",
        _afterwards,
        "the mask is applied after the softmax: the weights do not sum to one",
        "mask the scores before the softmax",
        "huggingface/pytorch-image-models#2236",
    ),
    _row(
        "attention-mask-added-as-ones",
        _added_as_ones,
        "the mask of zeros and ones is added to the scores",
        "replace the masked scores, do not add the mask: jnp.where(mask, scores, -jnp.inf)",
        "huggingface/transformers#48363",
    ),
    _row(
        "attention-empty-row-zero",
        _empty_rows(torch.zeros_like),
        "a query without keys gives zero",
        "fill the masked scores with the same number as PyTorch's model",
        "explosion/curated-transformers#360",
    ),
    _row(
        "attention-empty-row-uniform",
        _empty_rows(_uniform),
        "a query without keys gives all keys the same weight, as with a finite fill",
        "set the weights of such a query to zero: jnp.where(mask.any(-1, keepdims=True), weights, 0)",
        "pytorch/pytorch#103749",
    ),
    Trap(
        "attention-empty-row-not-zeroed",
        "between",
        ("masked_fill", "where", "mul"),
        _empty_rows_kept,
        "a query without keys keeps the weights that the softmax of a finite fill gives; PyTorch's model sets them to "
        "zero",
        "zero the weights of empty rows: jnp.where(mask.any(-1, keepdims=True), weights, 0)",
        "pytorch/pytorch#103749",
    ),
    Trap(
        "attention-sink-missing",
        "between",
        ("softmax",),
        _without_sink,
        "the attention sink is not among the scores of the softmax",
        "join the sink to the scores, take the softmax, and leave its column out of the weights",
        "TransformerLensOrg/TransformerLens#1621",
    ),
    _row(
        "attention-window-wider",
        _mask(_window(lambda width, _: width + 1)),
        "the window is one key wider",
        "let a query see its own key and width − 1 keys before it",
        "AI-Hypercomputer/maxtext@4cb305191",
    ),
    _row(
        "attention-window-narrower",
        _mask(_window(lambda width, _: width - 1)),
        "the window is one key narrower",
        "let a query see its own key and width − 1 keys before it",
        "keras-team/keras-hub@94283d610",
    ),
    _row(
        "attention-window-missing",
        _mask(_window(lambda _, length: length)),
        "there is no window: a query sees all keys before it",
        "mask the keys before the window, or pass local_window_size=(width − 1, 0)",
        "keras-team/keras-hub@cf8aedfff",
    ),
    _row(
        "attention-window-both-sides",
        _mask(_both_sides),
        "the window reaches ahead as far as back",
        "combine the window with the causal mask",
        "Beltagy et al. 2020",
    ),
    _row(
        "attention-causal-alignment",
        _mask(_aligned),
        "with more keys than queries, the causal mask starts at the other end",
        "pass jnp.tril the k of PyTorch's model: keys − queries, or 0",
        "ml-explore/mlx#2835",
    ),
    _row(
        "attention-bias-missing",
        _changed("bias", lambda step: None),
        "no bias is added to the scores",
        "add the bias to the scores, or pass it as bias=",
        "mosaicml/examples#247",
    ),
    _row(
        "attention-bias-transposed",
        _changed("bias", _turned),
        "the bias's queries and keys are exchanged",
        "put queries before keys in the bias: (…, queries, keys)",
        "Raffel et al. 2020",
    ),
    _row(
        "attention-bias-sign",
        _changed("bias", lambda step: replace(step, value=-step.value)),
        "the bias is subtracted",
        "add the bias to the scores",
        "Press et al. 2022",
    ),
    _row(
        "alibi-slopes-one-series",
        _slopes(lambda heads: [2.0 ** (-8.0 * (i + 1) / heads) for i in range(heads)]),
        "the slopes of ALiBi are one geometric series; if the number of heads is not a power of two, PyTorch's model "
        "takes those of the next lower power, and every other one of the next higher",
        "compute the slopes as PyTorch's model does",
        "ml-explore/mlx@590b4f1c1",
    ),
    _row(
        "attention-bias-scaled",
        _bias_first,
        "the bias is scaled with the scores; PyTorch's model adds it after the scale",
        "add the bias to the scaled scores",
        "Raffel et al. 2020",
    ),
    _row(
        "attention-bias-unscaled",
        _bias_scaled_after,
        "the bias is added after the scale; PyTorch's model scales it with the scores",
        "add the bias to the scores before you scale them",
        "Raffel et al. 2020",
    ),
    _row(
        "attention-cap-missing",
        _changed("cap", lambda step: None),
        "the scores are not capped",
        "cap the scores: cap * jnp.tanh(scores / cap)",
        "AI-Hypercomputer/maxtext@fecf96adb",
    ),
    _row(
        "attention-cap-behind-mask",
        _cap_last,
        "the cap is applied after the mask: masked scores are −cap, and take part in the softmax",
        "cap the scores, then mask them",
        "AI-Hypercomputer/maxtext@a56309f6f",
    ),
)
