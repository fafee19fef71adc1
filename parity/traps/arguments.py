"""Arguments of a port's code, read from PyTorch's side: the right value if a mistake is a wrong argument.

A table for each place where a trap can be: PyTorch's layer, a call of a function, a group of an optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.operations.own_norms import norm_of
from parity.traps.operations.parts import Call
from parity.traps.trap import LAYER, Argument, Trap

Value = bool | float | int | str | tuple[Any, ...]


@dataclass(frozen=True)
class Mend:
    """One argument that mends a mistake.

    Attributes:
        function: the class or function that takes it; empty for the class of the layer itself.
        got: the port's value; None if that is not known.
        expected: the right value.
    """

    argument: str
    got: Value | None
    expected: Value
    function: str = ""


def _alike(values: tuple[Any, ...]) -> Value:
    """One number for all dimensions, if they are equal."""
    return values[0] if len({*values}) == 1 else values


# PyTorch's modes of padding that Flax's convolutions have, too.
MODES = {"reflect": "REFLECT", "circular": "CIRCULAR"}


def _padding(layer: Any) -> Value | None:
    """Return the padding; None if it needs a separate operation before the layer."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return _transposed_padding(layer)
    if layer.padding_mode != "zeros":
        return _mode(layer)
    if isinstance(layer.padding, str):
        return layer.padding.upper()
    found = _alike(tuple(layer.padding))
    return tuple((p, p) for p in found) if isinstance(found, tuple) else found


def _mode(layer: Any) -> Value | None:
    """Return Flax's name of a padding mode that keeps the size, if PyTorch pads as much."""
    sizes = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    whole = isinstance(layer.padding, tuple) and [2 * p for p in layer.padding] == sizes
    return MODES.get(layer.padding_mode) if whole and {*layer.stride} == {1} else None


def _transposed_padding(layer: Any) -> Value:
    """Flax pads the dilated input, PyTorch cuts the output."""
    each = zip(layer.kernel_size, layer.dilation, layer.padding, layer.output_padding, strict=True)
    return tuple((d * (k - 1) - p, d * (k - 1) - p + more) for k, d, p, more in each)


def _momentum(layer: Any) -> Value | None:
    """Flax's momentum is the weight of the old value: 0.9 where PyTorch's is 0.1."""
    return None if layer.momentum is None else round(1 - layer.momentum, 12)


ARGUMENTS: dict[str, Callable[[Any], Value | None]] = {
    "epsilon": lambda layer: layer.eps,
    "momentum": _momentum,
    "num_groups": lambda layer: layer.num_groups,
    "strides": lambda layer: _alike(tuple(layer.stride)),
    "kernel_dilation": lambda layer: _alike(tuple(layer.dilation)),
    "padding": _padding,
    "reduction_axes": lambda norm: tuple(range(-len(norm.normalized_shape), 0)),
    "time_major": lambda recurrent: not recurrent.batch_first,
}
"""By the names of Flax's arguments, what gives each from PyTorch's layer; None where no value does."""


def mended(trap: Trap, layer: nn.Module) -> list[Mend]:
    """Return the arguments that mend a mistake in a layer.

    The port's value is None if the layer with the mistake has no such setting.
    """
    if not trap.arguments or trap.plant is None or (planted := trap.plant(copy.copy(layer))) is None:
        return []
    alike = isinstance(planted, type(layer))

    def mend(one: Argument) -> Mend | None:
        if one.value is not None:
            return Mend(one.name, None, one.value, one.function)
        got, expected = ARGUMENTS[one.name](planted) if alike else None, ARGUMENTS[one.name](layer)
        return None if expected is None or got == expected else Mend(one.name, got, expected, one.function)

    return [found for one in trap.arguments if (found := mend(_record(one))) is not None]


def _record(one: str | Argument) -> Argument:
    return Argument(one) if isinstance(one, str) else one


# The counterparts of PyTorch's functions whose name in the port is different, or that have no counterpart.
COUNTERPARTS = {
    **{f"{kind}_pool{n}d": f"{kind}_pool" for kind in ("max", "avg") for n in (1, 2, 3)},
    "interpolate": "resize",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "instance_norm": "InstanceNorm",
    "scaled_dot_product_attention": "dot_product_attention",
    "topk": "top_k",
}
PADDED = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "constant": "constant"}
EPSILONS = {"layer_norm": (4, 1e-5), "group_norm": (4, 1e-5), "instance_norm": (7, 1e-5), "rms_norm": (3, None)}


def _per_axis(call: Call, value: Any) -> tuple[int, ...]:
    return (value,) * (call[0].ndim - 2) if isinstance(value, int) else tuple(value)


def _axis(call: Call) -> Value | None:
    """Return an axis counted from the end; None for images and the like, whose axes have another order in the port."""
    dim, x = call.argument(1, "dim", -1), call[0]
    return dim % x.ndim - x.ndim if isinstance(dim, int) and x.ndim < 4 else None


def _strides(call: Call) -> Value:
    return _per_axis(call, call.argument(2, "stride") or call.argument(1, "kernel_size"))


def _pool_padding(call: Call) -> Value:
    return tuple((p, p) for p in _per_axis(call, call.argument(3, "padding", 0)))


def _scale(call: Call) -> Value | None:
    depth = call[0].shape[-1]
    return call.argument(6, "scale", depth**-0.5) if call.name == "scaled_dot_product_attention" else None


def _correction(call: Call) -> Value | None:
    unbiased = call.argument(1, "unbiased")
    return int(unbiased) if isinstance(unbiased, bool) else call.kw.get("correction", int(call.kw.get("unbiased", 1)))


def _shift(call: Call) -> Value:
    shifts = call.argument(1, "shifts")
    return shifts if isinstance(shifts, int) else _alike(tuple(shifts))


def _epsilon(call: Call) -> Value | None:
    norm = norm_of(call.function, call.args, call.kw)
    if norm is not None:
        return norm.eps
    place, default = EPSILONS.get(call.name, (0, None))
    return call.argument(place, "eps", default) if place else None


def _numbers(tensor: Any) -> Value | None:
    return tuple(tensor.tolist()) if isinstance(tensor, Tensor) and tensor.ndim == 1 and len(tensor) <= 16 else None


CALLED: dict[str, Callable[[Call], Value | None]] = {
    "approximate": lambda call: call.argument(1, "approximate", "none") == "tanh",
    "negative_slope": lambda call: call.argument(1, "negative_slope", 0.01),
    "alpha": lambda call: call.argument(1, "alpha", 1.0),
    "axis": _axis,
    "count_include_pad": lambda call: call.argument(5, "count_include_pad", True),
    "strides": _strides,
    "padding": _pool_padding,
    "is_causal": lambda call: call.argument(5, "is_causal", False),
    "scale": _scale,
    "ddof": _correction,
    "mode": lambda call: PADDED.get(call.argument(2, "mode", "constant")),
    "shift": _shift,
    "antialias": lambda call: bool(call.argument(6, "antialias", False)),
    "method": lambda call: call.argument(3, "mode", "nearest"),
    "norm": lambda call: call.argument(3, "norm") or "backward",
    "k": lambda call: call.argument(1, "k"),
    "epsilon": _epsilon,
    "reduction_axes": lambda call: tuple(range(1, 1 + len(call.argument(1, "normalized_shape")))),
    "label_smoothing": lambda call: call.argument(7, "label_smoothing", 0.0),
    "weight": lambda call: _numbers(call.argument(2, "weight")),
    "delta": lambda call: call.argument(3, "delta", 1.0),
}
"""By the names of arguments of functions, what gives each from a call of PyTorch's; None where no value does."""


def mended_call(trap: Trap, calls: Iterable[Call]) -> list[Mend]:
    """Return the arguments that mend a mistake in calls of functions; empty if the calls need different ones."""
    found = [{*_of_call(trap, call)} for call in calls]
    return (
        [*found[0]] if found and all(one == found[0] for one in found) and len(found[0]) == len(trap.arguments) else []
    )


def _of_call(trap: Trap, call: Call) -> Iterable[Mend]:
    for one in map(_record, trap.arguments):
        expected = CALLED[one.name](call) if one.value is None else one.value
        own = getattr(call.function, "__name__", call.name).removeprefix("fft_")
        function = "" if one.function == LAYER else one.function or COUNTERPARTS.get(own, own)
        if expected is not None:
            yield Mend(one.name, None, expected, function)


# optax's optimizers for PyTorch's, where both have the same options.
OPTAX = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw", "RMSprop": "rmsprop", "Adagrad": "adagrad"}

TRAINED: dict[str, tuple[str, Callable[[Mapping[str, Any]], Value]]] = {
    "momentum": ("sgd rmsprop", lambda group: group["momentum"]),
    "nesterov": ("sgd", lambda group: group["nesterov"]),
    "weight_decay": ("adamw", lambda group: group["weight_decay"]),
    "eps": ("adam adamw rmsprop adagrad", lambda group: group["eps"]),
    "b1": ("adam adamw", lambda group: group["betas"][0]),
    "b2": ("adam adamw", lambda group: group["betas"][1]),
    "decay": ("rmsprop", lambda group: group["alpha"]),
    "centered": ("rmsprop", lambda group: group["centered"]),
    "initial_accumulator_value": ("adagrad", lambda group: group["initial_accumulator_value"]),
}
"""By the names of optax's arguments, the optimizers that have it, and what gives it from a group of PyTorch's."""


def mended_training(trap: Trap, right: torch.optim.Optimizer, wrong: Any) -> list[Mend]:
    """Return the arguments of an optimizer that mend a mistake; empty if the parameter groups need different ones.

    Args:
        wrong: PyTorch's optimizer with the mistake.
    """
    function = OPTAX.get(type(right).__name__, "")
    theirs: Sequence[Mapping[str, Any]] = getattr(wrong, "param_groups", ())
    found = []
    for one in map(_record, trap.arguments):
        of, read = TRAINED.get(one.name, (one.function, None))
        if function not in of.split():
            return []
        values = {read(group) for group in right.param_groups} if read and one.value is None else {one.value}
        if len(values) != 1:
            return []
        got = read(theirs[0]) if read and theirs and one.value is None else None
        if got != (expected := values.pop()):
            found.append(Mend(one.name, got, expected, function))
    return found
