"""Known mistakes in activations. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.operations.functions import GELU, RELU
from parity.traps.planting import MISSING, Values, argument, instead
from parity.traps.trap import Trap

RELU_PAGES = "He et al. 2016, figure 4; jax.nn.relu"
GELU_PAGES = "torch.nn.GELU, jax.nn.gelu: approximate"
SILU_PAGES = "torch.nn.SiLU, jax.nn.silu"


def _setting(i: int, name: str, default: Any, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The default in place of another setting of the function."""

    def plant(own: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        return (function or own)(args[0]) if argument(args, kw, i, name, default) != default else None

    return plant


def _hardtanh(bounds: tuple[float, float], function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Another function in place of a hardtanh between these bounds."""

    def plant(own: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        if own.__name__ == "relu6":
            return function(args[0]) if bounds == (0, 6) else None
        low, high = argument(args, kw, 1, "min_val", -1.0), argument(args, kw, 2, "max_val", 1.0)
        return function(args[0]) if (low, high) == bounds else None

    return plant


def _bounds_lost(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    low, high = argument(args, kw, 1, "min_val", -1.0), argument(args, kw, 2, "max_val", 1.0)
    return F.hardtanh(args[0]) if (low, high) != (-1, 1) else None


def _halves(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    a, b = args[0].chunk(2, argument(args, kw, 1, "dim", -1))
    return b * torch.sigmoid(a)


COMMON_ACTIVATIONS = (
    Trap("relu-missing", "between", RELU, MISSING, "there is no ReLU; PyTorch has one", "add nn.relu", RELU_PAGES),
    Trap(
        "relu-is-gelu",
        "between",
        RELU,
        instead(lambda x: F.gelu(x, approximate="tanh")),
        "GELU for ReLU",
        "use nn.relu",
        RELU_PAGES,
    ),
    Trap("relu-is-silu", "between", RELU, instead(F.silu), "SiLU for ReLU", "use nn.relu", RELU_PAGES),
    Trap("relu-is-leaky", "between", RELU, instead(F.leaky_relu), "a leaky ReLU for ReLU", "use nn.relu", RELU_PAGES),
    Trap("relu-is-relu6", "between", RELU, instead(F.relu6), "ReLU6 for ReLU", "use nn.relu", RELU_PAGES),
    Trap(
        "gelu-tanh",
        "between",
        GELU,
        lambda f, a, kw: f(a[0], approximate="none" if kw.get("approximate") == "tanh" else "tanh"),
        "GELU's other form: Flax's default is the tanh approximation, PyTorch's the error function",
        "pass approximate=False, or True for PyTorch's approximate='tanh'",
        GELU_PAGES,
        arguments=("approximate",),
    ),
    Trap(
        "gelu-missing",
        "between",
        GELU,
        MISSING,
        "there is no GELU; PyTorch has one",
        "add nn.gelu with approximate=False, or True for PyTorch's approximate='tanh'",
        GELU_PAGES,
    ),
    Trap(
        "leaky-slope",
        "between",
        ("leaky_relu",),
        lambda f, a, kw: f(a[0]) if (a[1:] or [kw.get("negative_slope", 0.01)])[0] != 0.01 else None,
        "the leaky ReLU has Flax's default slope, 0.01",
        "pass negative_slope=, as PyTorch has it",
        "torch.nn.LeakyReLU, jax.nn.leaky_relu",
        arguments=("negative_slope",),
    ),
    Trap("silu-missing", "between", ("silu",), MISSING, "there is no SiLU; PyTorch has one", "add nn.silu", SILU_PAGES),
)

ACTIVATIONS = (
    Trap(
        "gelu-quick",
        "between",
        GELU,
        instead(lambda x: x * torch.sigmoid(1.702 * x)),
        "the GELU is x · sigmoid(1.702 x)",
        "use nn.gelu with approximate=False, or True for PyTorch's approximate='tanh'",
        "Hendrycks and Gimpel 2016, section 2",
    ),
    Trap(
        "gelu-is-silu",
        "between",
        GELU,
        instead(F.silu),
        "SiLU for GELU",
        "use nn.gelu with approximate=False, or True for PyTorch's approximate='tanh'",
        "huggingface/candle#3747",
    ),
    Trap(
        "gelu-is-relu",
        "between",
        GELU,
        instead(F.relu),
        "ReLU for GELU",
        "use nn.gelu with approximate=False, or True for PyTorch's approximate='tanh'",
        GELU_PAGES,
    ),
    Trap(
        "relu6-is-relu",
        "between",
        ("relu6", "hardtanh"),
        _hardtanh((0, 6), F.relu),
        "ReLU for ReLU6",
        "use nn.relu6",
        "torch.nn.ReLU6, jax.nn.relu6",
    ),
    Trap(
        "hardtanh-bounds-lost",
        "between",
        ("hardtanh",),
        _bounds_lost,
        "hardtanh between −1 and 1",
        "use jnp.clip(x, min_val, max_val), with PyTorch's bounds",
        "torch.nn.Hardtanh, jax.nn.hard_tanh",
    ),
    Trap(
        "hardtanh-is-tanh",
        "between",
        ("hardtanh",),
        _hardtanh((-1, 1), torch.tanh),
        "tanh for hardtanh",
        "use nn.hard_tanh",
        "torch.nn.Hardtanh, jax.nn.hard_tanh",
    ),
    Trap(
        "elu-alpha-lost",
        "between",
        ("elu", "elu_"),
        _setting(1, "alpha", 1.0),
        "ELU's alpha is the default, 1",
        "pass alpha= to nn.elu, as PyTorch has it",
        "Clevert et al. 2016; jax.nn.elu",
        arguments=("alpha",),
    ),
    Trap(
        "elu-is-celu",
        "between",
        ("elu",),
        lambda _, a, kw: F.celu(a[0], argument(a, kw, 1, "alpha", 1.0)),
        "CELU",
        "use nn.elu",
        "Clevert et al. 2016; jax.nn.elu",
    ),
    Trap(
        "celu-is-elu",
        "between",
        ("celu",),
        lambda _, a, kw: F.elu(a[0], argument(a, kw, 1, "alpha", 1.0)),
        "ELU",
        "use nn.celu",
        "Barron 2017; jax.nn.celu",
    ),
    Trap(
        "selu-is-elu",
        "between",
        ("selu",),
        instead(F.elu),
        "ELU instead of SELU: the scale is missing",
        "use nn.selu",
        "Klambauer et al. 2017; jax.nn.selu",
    ),
    Trap(
        "softplus-beta-lost",
        "between",
        ("softplus",),
        _setting(1, "beta", 1.0),
        "softplus has beta 1",
        "write nn.softplus(beta * x) / beta",
        "torch.nn.Softplus, jax.nn.softplus",
    ),
    Trap(
        "softplus-is-relu",
        "between",
        ("softplus",),
        instead(F.relu),
        "ReLU for softplus",
        "use nn.softplus",
        "torch.nn.Softplus, jax.nn.softplus",
    ),
    Trap(
        "hardswish-is-silu",
        "between",
        ("hardswish",),
        instead(F.silu),
        "swish for hard-swish",
        "use nn.hard_swish",
        "Howard et al. 2019, section 5.2",
    ),
    Trap(
        "silu-is-hardswish",
        "between",
        ("silu",),
        instead(F.hardswish),
        "hard-swish for swish",
        "use nn.silu",
        SILU_PAGES,
    ),
    Trap(
        "silu-is-gelu",
        "between",
        ("silu",),
        instead(lambda x: F.gelu(x, approximate="tanh")),
        "GELU for SiLU",
        "use nn.silu",
        SILU_PAGES,
    ),
    Trap(
        "hardsigmoid-is-sigmoid",
        "between",
        ("hardsigmoid",),
        instead(torch.sigmoid),
        "sigmoid",
        "use nn.hard_sigmoid",
        "torch.nn.Hardsigmoid, jax.nn.hard_sigmoid",
    ),
    Trap(
        "hardsigmoid-slope",
        "between",
        ("hardsigmoid",),
        instead(lambda x: torch.clamp(0.2 * x + 0.5, 0, 1)),
        "the hard sigmoid is 0.2 x + 0.5; PyTorch's x / 6 + 0.5",
        "use nn.hard_sigmoid",
        "torch.nn.Hardsigmoid, jax.nn.hard_sigmoid",
    ),
    Trap(
        "mish-is-silu",
        "between",
        ("mish",),
        instead(F.silu),
        "SiLU for Mish",
        "use jax.nn.mish, which is x * jnp.tanh(nn.softplus(x))",
        "Misra 2020; jax.nn.mish",
    ),
    Trap(
        "tanh-missing",
        "between",
        ("tanh",),
        MISSING,
        "there is no tanh; PyTorch has one",
        "add jnp.tanh",
        "torch.nn.Tanh",
    ),
    Trap(
        "sigmoid-missing",
        "between",
        ("sigmoid",),
        MISSING,
        "there is no sigmoid; PyTorch has one",
        "add nn.sigmoid",
        "torch.nn.Sigmoid",
    ),
    Trap(
        "glu-halves",
        "between",
        ("glu",),
        _halves,
        "the gate is the first half; PyTorch's is the second",
        "use nn.glu, whose gate is the second half",
        "Dauphin et al. 2017; torch.nn.GLU, jax.nn.glu",
    ),
    Trap(
        "log-softmax-missing",
        "between",
        ("log_softmax",),
        MISSING,
        "there is no log_softmax; PyTorch has one",
        "add nn.log_softmax",
        "torch.nn.LogSoftmax",
    ),
    Trap(
        "softmax-missing",
        "between",
        ("softmax",),
        MISSING,
        "there is no softmax",
        "add nn.softmax",
        "torch.nn.Softmax, jax.nn.softmax",
    ),
)
