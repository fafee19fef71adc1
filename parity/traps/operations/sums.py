"""Known mistakes in sums and factors, and in the code before or after them. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.operations.functions import ADD, CLAMP, FOURIER, RELU, SCALE
from parity.traps.operations.parts import call_of
from parity.traps.planting import MISSING, Values, argument
from parity.traps.trap import Trap

RELU_PAGES = "He et al. 2016, figure 4; jax.nn.relu"


def _operand(i: int) -> Callable[..., Any]:
    """One of two summands alone."""

    def plant(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
        parts = [p for p in (*args, kw.get("other")) if isinstance(p, Tensor) and p.ndim > 1]
        return parts[i] if len(parts) == 2 and parts[0].shape == parts[1].shape else None

    return plant


def _summands(x: Any) -> list[Tensor] | None:
    """The two parts of a sum that `x` is."""
    call = call_of(x)
    return [*call.args[:2]] if call is not None and call.name == "add" and len(call.args) > 1 else None


def _relu_before(i: int) -> Callable[..., Any]:
    def plant(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
        parts = _summands(args[0])
        return None if parts is None else F.relu(parts[i]) + parts[1 - i]

    return plant


def _relu_after(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The ReLU of one part, applied to the whole sum."""
    parts = [call_of(p) for p in args[:2]]
    inner = [call[0] if call is not None and call.name == "relu" else None for call in parts]
    if inner[0] is None and inner[1] is None:
        return None
    a, b = (p if x is None else x for p, x in zip(args[:2], inner, strict=True))
    return F.relu(a + b)


def _number(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> tuple[Tensor, float, bool] | None:
    """A tensor, the number that it is scaled by, and whether it is divided."""
    parts = [*args, *kw.values()]
    tensors = [p for p in parts if isinstance(p, Tensor) and p.ndim > 1]
    numbers = [float(p) for p in parts if isinstance(p, int | float) or (isinstance(p, Tensor) and not p.ndim)]
    return (tensors[0], numbers[0], "div" in function.__name__) if len(tensors) == len(numbers) == 1 else None


def _unscaled(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    found = _number(function, args, kw)
    return found and found[0]


def _inverse(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    found = _number(function, args, kw)
    return found and (found[0] * found[1] if found[2] else found[0] / found[1])


def _transformed(norm: str, default: bool) -> Callable[..., Any]:
    """A Fourier transform with another norm, if PyTorch uses the default norm, or if it does not."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        own = argument(args, kw, 3, "norm", None) or "backward"
        return function(*args[:3], **{**kw, "norm": norm}) if (own == "backward") is default else None

    return plant


def _window_sum(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Overlapping frames divided by the sum of their windows; PyTorch divides by the sum of the squared windows."""
    size, hop = argument(args, kw, 1, "n_fft", None), argument(args, kw, 2, "hop_length", None)
    window, length = argument(args, kw, 4, "window", None), argument(args, kw, 3, "win_length", None)
    if window is None or length not in (None, size) or argument(args, kw, 8, "length", None) is not None:
        return None
    y, hop = function(*args, **kw), hop or size // 4
    frames = args[0].shape[-1]
    starts = [slice(i * hop, i * hop + size) for i in range(frames)]
    sums = [torch.zeros(size + hop * (frames - 1)).to(window) for _ in range(2)]
    for power, total in enumerate(sums, 1):
        for at in starts:
            total[at] += window**power
    centre = size // 2 if argument(args, kw, 5, "center", True) else 0
    once, squared = (total[centre : centre + y.shape[-1]] for total in sums)
    return y * squared / once


LOST_SUMMANDS = (
    Trap(
        "sum-lacks-second",
        "between",
        ADD,
        _operand(0),
        "a sum lacks its second part, or a residual its branch",
        "add the second part",
        "He et al. 2016, figure 2",
    ),
    Trap(
        "sum-lacks-first",
        "between",
        ADD,
        _operand(1),
        "a sum lacks its first part, as where a residual is missing",
        "add the first part",
        "He et al. 2016, figure 2",
    ),
)

SUMS_AND_FACTORS = (
    Trap(
        "relu-before-sum",
        "between",
        RELU,
        _relu_before(1),
        "the ReLU is applied before the sum, to its second part",
        "apply nn.relu after the sum",
        RELU_PAGES,
    ),
    Trap(
        "relu-before-sum-first",
        "between",
        RELU,
        _relu_before(0),
        "the ReLU is applied before the sum, to its first part",
        "apply nn.relu after the sum",
        RELU_PAGES,
    ),
    Trap(
        "relu-after-sum",
        "between",
        ADD,
        _relu_after,
        "the ReLU is applied after the sum; PyTorch applies it to one part",
        "apply nn.relu to the one part, before the sum",
        RELU_PAGES,
    ),
    Trap(
        "scale-missing",
        "between",
        SCALE,
        _unscaled,
        "a factor is missing",
        "multiply by the factor, or divide by it, as PyTorch does",
        "torch.mul",
    ),
    Trap(
        "scale-inverse",
        "between",
        SCALE,
        _inverse,
        "a factor is the inverse of PyTorch's",
        "multiply where PyTorch multiplies, and divide where it divides",
        "torch.mul",
    ),
    Trap(
        "clamp-missing", "between", CLAMP, MISSING, "there is no clamp", "add jnp.clip", "torch.clamp, jax.numpy.clip"
    ),
    Trap(
        "fourier-norm-added",
        "between",
        FOURIER,
        _transformed("ortho", default=True),
        "the Fourier transform is divided by the root of its length",
        "leave out norm=",
        "torch.fft.rfft, jax.numpy.fft.rfft",
        arguments=("norm",),
    ),
    Trap(
        "istft-window-not-squared",
        "between",
        ("istft",),
        _window_sum,
        "the overlapping frames of the inverse short-time Fourier transform are divided by the sum of the windows; "
        "PyTorch divides by the sum of their squares",
        "divide by the overlapped window ** 2",
        "Blaizzy/mlx-audio#859",
    ),
    Trap(
        "fourier-norm-missing",
        "between",
        FOURIER,
        _transformed("backward", default=False),
        "the Fourier transform has the default norm; PyTorch's model has another",
        "pass norm=, as PyTorch's model has it",
        "torch.fft.rfft, jax.numpy.fft.rfft",
        arguments=("norm",),
    ),
)
