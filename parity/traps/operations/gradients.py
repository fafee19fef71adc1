"""Known mistakes in gradients between layers, where the values are right. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.functions import ADD, CLAMP, RELU, SCALE
from parity.traps.planting import MISSING, Values, argument, instead
from parity.traps.trap import Trap

STOPPED = (
    *(*RELU, *ADD, *SCALE, "gelu", "silu", "tanh", "sigmoid", "softmax", "cat", "mean", "flatten", "reshape"),
    *("max_pool2d", "avg_pool2d", "leaky_relu", "elu"),
)


def _bounds(args: Values, kw: dict[str, Any]) -> tuple[Any, Any]:
    return argument(args, kw, 1, "min", None), argument(args, kw, 2, "max", None)


def _clamped(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Two equal numbers get half of the gradient each."""
    x, (low, high) = args[0], _bounds(args, kw)
    x = x if low is None else torch.maximum(x, torch.full_like(x, low))
    return x if high is None else torch.minimum(x, torch.full_like(x, high))


def _maximum(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """All equal numbers share the gradient."""
    value = function(*args, **kw)
    dim, keep = argument(args, kw, 1, "dim", None), argument(args, kw, 2, "keepdim", False)
    return type(value)((args[0].amax(dim, keepdim=keep), value.indices)) if isinstance(dim, int) else None


def _stopped(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    value = function(*args, **kw)
    return value.detach() if value.requires_grad else None


def _slope(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    x = args[0]
    return torch.where(x >= 0, x, argument(args, kw, 1, "negative_slope", 0.01) * x)


OPERATION_GRADIENTS = (
    Trap(
        "relu-gradient-half",
        "between",
        RELU,
        instead(lambda x: torch.maximum(x, torch.zeros_like(x))),
        "the gradient of jnp.maximum(x, 0) at 0 is ½; PyTorch's ReLU has 0",
        "use nn.relu",
        "jax.nn.relu",
        gradient=True,
    ),
    Trap(
        "abs-gradient-one",
        "between",
        ("abs", "__abs__", "absolute"),
        instead(lambda x: torch.where(x >= 0, x, -x)),
        "the gradient of jnp.abs at 0 is 1; PyTorch's is 0",
        "write x * jnp.sign(x)",
        "jax.numpy.abs",
        gradient=True,
    ),
    Trap(
        "leaky-gradient-one",
        "between",
        ("leaky_relu",),
        _slope,
        "the gradient of the leaky ReLU at 0 is 1; PyTorch's is the slope",
        "write jnp.where(x > 0, x, slope * x)",
        "torch.nn.LeakyReLU, jax.nn.leaky_relu",
        gradient=True,
    ),
    Trap(
        "clamp-gradient-half",
        "between",
        CLAMP,
        _clamped,
        "the gradient of jnp.clip at a bound is ½; PyTorch's is 1",
        "write jnp.where(x < low, low, jnp.where(x > high, high, x))",
        "torch.clamp, jax.numpy.clip",
        gradient=True,
    ),
    Trap(
        "max-gradient-shared",
        "between",
        ("max",),
        _maximum,
        "equal numbers share the gradient of jnp.max; in PyTorch's max(dim) one gets it",
        "take the maximum with jnp.argmax and jnp.take_along_axis",
        "torch.max",
        gradient=True,
    ),
    Trap(
        "stop-gradient-missing",
        "between",
        ("detach", "detach_"),
        MISSING,
        "a gradient flows where PyTorch detaches",
        "apply jax.lax.stop_gradient where PyTorch detaches",
        "torch.Tensor.detach, jax.lax.stop_gradient",
        gradient=True,
    ),
    Trap(
        "stop-gradient-added",
        "between",
        STOPPED,
        _stopped,
        "the gradient is stopped; PyTorch's flows",
        "leave out jax.lax.stop_gradient",
        "torch.Tensor.detach, jax.lax.stop_gradient",
        gradient=True,
    ),
)
