"""Known mistakes in activations, and in gradients where the values are right. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.planting import Operation, Values, argument, instead

RELU, ADD = ("relu", "relu_"), ("add", "add_", "__add__", "__iadd__", "__radd__")
SCALE = ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__", "true_divide")
STOPPED = (
    *(*RELU, *ADD, *SCALE, "gelu", "silu", "tanh", "sigmoid", "softmax", "cat", "mean", "flatten", "reshape"),
    *("max_pool2d", "avg_pool2d", "leaky_relu", "elu"),
)


def _setting(i: int, name: str, default: Any, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The default in place of another setting of the function."""

    def plant(own: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        return (function or own)(args[0]) if argument(args, kw, i, name, default) != default else None

    return plant


def _hardtanh(bounds: tuple[float, float], function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Another function where PyTorch has a hardtanh between these bounds."""

    def plant(own: Any, args: Values, kw: dict[str, Any]) -> Any:
        if own.__name__ == "relu6":
            return function(args[0]) if bounds == (0, 6) else None
        low, high = argument(args, kw, 1, "min_val", -1.0), argument(args, kw, 2, "max_val", 1.0)
        return function(args[0]) if (low, high) == bounds else None

    return plant


def _bounds_lost(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    low, high = argument(args, kw, 1, "min_val", -1.0), argument(args, kw, 2, "max_val", 1.0)
    return F.hardtanh(args[0]) if (low, high) != (-1, 1) else None


def _summands(x: Any) -> list[Tensor] | None:
    """The two parts of a sum that `x` is."""
    name, parts = getattr(x, "made_of", ("", ()))
    return [*parts[:2]] if name in ("add", "iadd", "radd") and len(parts) > 1 else None


def _relu_before(i: int) -> Callable[..., Any]:
    def plant(_: Any, args: Values, kw: dict[str, Any]) -> Any:
        parts = _summands(args[0])
        return None if parts is None else F.relu(parts[i]) + parts[1 - i]

    return plant


def _relu_after(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The ReLU of one part, of the whole sum."""
    parts: list[Any] = [getattr(p, "made_of", ("", ())) for p in args[:2]]
    inner = [of[1][0] if of[0] == "relu" else None for of in parts]
    if inner[0] is None and inner[1] is None:
        return None
    a, b = (p if x is None else x for p, x in zip(args[:2], inner, strict=True))
    return F.relu(a + b)


def _number(function: Any, args: Values, kw: dict[str, Any]) -> tuple[Tensor, float, bool] | None:
    """A tensor, the number that it is scaled by, and whether it is divided."""
    parts = [*args, *kw.values()]
    tensors = [p for p in parts if isinstance(p, Tensor) and p.ndim > 1]
    numbers = [float(p) for p in parts if isinstance(p, int | float) or (isinstance(p, Tensor) and not p.ndim)]
    return (tensors[0], numbers[0], "div" in function.__name__) if len(tensors) == len(numbers) == 1 else None


def _unscaled(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    found = _number(function, args, kw)
    return found and found[0]


def _inverse(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    found = _number(function, args, kw)
    return found and (found[0] * found[1] if found[2] else found[0] / found[1])


def _bounds(args: Values, kw: dict[str, Any]) -> tuple[Any, Any]:
    return argument(args, kw, 1, "min", None), argument(args, kw, 2, "max", None)


def _clamped(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    """Of equal numbers each gets half of the gradient."""
    x, (low, high) = args[0], _bounds(args, kw)
    x = x if low is None else torch.maximum(x, torch.full_like(x, low))
    return x if high is None else torch.minimum(x, torch.full_like(x, high))


def _maximum(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """All equal numbers share the gradient."""
    value = function(*args, **kw)
    dim, keep = argument(args, kw, 1, "dim", None), argument(args, kw, 2, "keepdim", False)
    return type(value)((args[0].amax(dim, keepdim=keep), value.indices)) if isinstance(dim, int) else None


def _stopped(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    value = function(*args, **kw)
    return value.detach() if value.requires_grad else None


def _slope(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    x = args[0]
    return torch.where(x >= 0, x, argument(args, kw, 1, "negative_slope", 0.01) * x)


def _halves(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    a, b = args[0].chunk(2, argument(args, kw, 1, "dim", -1))
    return b * torch.sigmoid(a)


def _row(name: str, functions: tuple[str, ...], plant: Any, text: str, mend: str, gradient: bool = False) -> Operation:
    return Operation(name, functions, plant, text, mend, gradient)


ACTIVATIONS = (
    _row(
        "gelu-quick",
        ("gelu",),
        instead(lambda x: x * torch.sigmoid(1.702 * x)),
        "the GELU is x · sigmoid(1.702 x)",
        "use nn.gelu",
    ),
    _row("gelu-is-relu", ("gelu",), instead(F.relu), "ReLU for GELU", "use nn.gelu"),
    _row("relu6-is-relu", ("relu6", "hardtanh"), _hardtanh((0, 6), F.relu), "ReLU for ReLU6", "use nn.relu6"),
    _row("hardtanh-bounds-lost", ("hardtanh",), _bounds_lost, "hardtanh between −1 and 1", "jnp.clip"),
    _row("hardtanh-is-tanh", ("hardtanh",), _hardtanh((-1, 1), torch.tanh), "tanh for hardtanh", "use nn.hard_tanh"),
    _row("elu-alpha-lost", ("elu", "elu_"), _setting(1, "alpha", 1.0), "ELU's alpha is the default, 1", "pass alpha"),
    _row("elu-is-celu", ("elu",), lambda _, a, kw: F.celu(a[0], argument(a, kw, 1, "alpha", 1.0)), "CELU", "nn.elu"),
    _row("celu-is-elu", ("celu",), lambda _, a, kw: F.elu(a[0], argument(a, kw, 1, "alpha", 1.0)), "ELU", "nn.celu"),
    _row("selu-is-elu", ("selu",), instead(F.elu), "ELU for SELU: no scale", "use nn.selu"),
    _row("softplus-beta-lost", ("softplus",), _setting(1, "beta", 1.0), "softplus has beta 1", "softplus(bx) / b"),
    _row("softplus-is-relu", ("softplus",), instead(F.relu), "ReLU for softplus", "use nn.softplus"),
    _row("hardswish-is-silu", ("hardswish",), instead(F.silu), "swish for hard-swish", "use nn.hard_swish"),
    _row("silu-is-hardswish", ("silu",), instead(F.hardswish), "hard-swish for swish", "use nn.silu"),
    _row("silu-is-gelu", ("silu",), instead(lambda x: F.gelu(x, approximate="tanh")), "GELU for SiLU", "use nn.silu"),
    _row("hardsigmoid-is-sigmoid", ("hardsigmoid",), instead(torch.sigmoid), "sigmoid", "use nn.hard_sigmoid"),
    _row(
        "hardsigmoid-slope",
        ("hardsigmoid",),
        instead(lambda x: torch.clamp(0.2 * x + 0.5, 0, 1)),
        "the hard sigmoid is 0.2 x + 0.5; PyTorch's x / 6 + 0.5",
        "use nn.hard_sigmoid",
    ),
    _row("mish-is-silu", ("mish",), instead(F.silu), "SiLU for Mish", "x * jnp.tanh(nn.softplus(x))"),
    _row("tanh-missing", ("tanh",), instead(lambda x: x), "there is no tanh; PyTorch has one", "add jnp.tanh"),
    _row("sigmoid-missing", ("sigmoid",), instead(lambda x: x), "there is no sigmoid; PyTorch has one", "nn.sigmoid"),
    _row("glu-halves", ("glu",), _halves, "the gate is the first half; PyTorch's is the second", "nn.glu"),
    _row(
        "log-softmax-missing",
        ("log_softmax",),
        instead(lambda x: x),
        "there is no log_softmax; PyTorch has one",
        "add nn.log_softmax",
    ),
    _row("softmax-missing", ("softmax",), instead(lambda x: x), "there is no softmax", "add nn.softmax"),
    _row("relu-before-sum", RELU, _relu_before(1), "the ReLU stands before the sum, on its second part", "after it"),
    _row(
        "relu-before-sum-first", RELU, _relu_before(0), "the ReLU stands before the sum, on its first part", "after it"
    ),
    _row("relu-after-sum", ADD, _relu_after, "the ReLU stands behind the sum; PyTorch's on one part", "before it"),
    _row("scale-missing", SCALE, _unscaled, "a factor is missing", "multiply by it"),
    _row("scale-inverse", SCALE, _inverse, "a factor is the inverse of PyTorch's", "divide where PyTorch divides"),
    _row("clamp-missing", ("clamp", "clip", "clamp_"), instead(lambda x: x), "there is no clamp", "add jnp.clip"),
    _row(
        "relu-gradient-half",
        RELU,
        instead(lambda x: torch.maximum(x, torch.zeros_like(x))),
        "the gradient of jnp.maximum(x, 0) at 0 is ½; PyTorch's ReLU has 0",
        "use nn.relu",
        True,
    ),
    _row(
        "abs-gradient-one",
        ("abs", "__abs__", "absolute"),
        instead(lambda x: torch.where(x >= 0, x, -x)),
        "the gradient of jnp.abs at 0 is 1; PyTorch's is 0",
        "x * jnp.sign(x)",
        True,
    ),
    _row(
        "leaky-gradient-one",
        ("leaky_relu",),
        _slope,
        "the gradient of the leaky ReLU at 0 is 1; PyTorch's is the slope",
        "jnp.where(x > 0, x, slope * x)",
        True,
    ),
    _row(
        "clamp-gradient-half",
        ("clamp", "clip", "clamp_"),
        _clamped,
        "the gradient of jnp.clip at a bound is ½; PyTorch's is 1",
        "jnp.where",
        True,
    ),
    _row(
        "max-gradient-shared",
        ("max",),
        _maximum,
        "equal numbers share the gradient of jnp.max; in PyTorch's max(dim) one gets it",
        "jnp.take_along_axis with jnp.argmax",
        True,
    ),
    _row(
        "stop-gradient-missing",
        ("detach", "detach_"),
        instead(lambda x: x),
        "a gradient flows where PyTorch detaches",
        "jax.lax.stop_gradient",
        True,
    ),
    _row(
        "stop-gradient-added", STOPPED, _stopped, "the gradient is stopped; PyTorch's flows", "no stop_gradient", True
    ),
)
