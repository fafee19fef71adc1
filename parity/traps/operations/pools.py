"""Known mistakes in pools. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.operations.functions import AVG_POOL, MAX_POOL
from parity.traps.planting import Values, argument, with_argument
from parity.traps.trap import Trap

MAX_POOL_PAGES = "torch.nn.MaxPool2d, flax.linen.max_pool"
AVG_POOL_PAGES = "torch.nn.AvgPool2d, flax.linen.avg_pool"

GLOBAL = ("adaptive_avg_pool2d", "adaptive_avg_pool1d")


def _windows(args: Values, kw: dict[str, Any], dims: int) -> tuple[list[int], list[int], list[int]]:
    """Window, stride and padding of a pool."""

    def each(value: Any) -> list[int]:
        return [value] * dims if isinstance(value, int) else list(value)

    window = each(argument(args, kw, 1, "kernel_size", 1))
    stride = argument(args, kw, 2, "stride", None)
    padding = each(argument(args, kw, 3, "padding", 0))
    return window, each(stride) if stride else window, padding


def _pool(pad: str, value: float, average: bool = False) -> Callable[..., Any]:
    """A pool with other padding: `same` pads like XLA, `own` like PyTorch but with `value`, `none` not at all."""

    def plant(own: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        x = args[0] if args else kw["input"]
        window, stride, padding = _windows(args, kw, 2)
        rounds_up = argument(args, kw, 4 if "avg" in own.__name__ else 5, "ceil_mode", False)
        if x.ndim != 4 or kw.get("return_indices") or rounds_up or kw.get("dilation", 1) != 1:
            return None
        if pad != "same" and not any(padding) and not average:
            return None
        pads: list[int] = []
        for size, k, s, p in reversed(list(zip(x.shape[2:], window, stride, padding, strict=True))):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += {"same": [total // 2, total - total // 2], "own": [p, p], "none": [0, 0]}[pad]
        padded = F.pad(x, pads, value=value)
        return F.avg_pool2d(padded, window, stride) if average else F.max_pool2d(padded, window, stride)

    return plant


def _pool_stride(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    x = args[0] if args else kw["input"]
    window, stride, padding = _windows(args, kw, x.ndim - 2)
    return function(x, window, 1, padding) if set(stride) != {1} and kw.get("dilation", 1) == 1 else None


def _counting(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    window, stride, padding = _windows(args, kw, 2)
    counts = argument(args, kw, 5, "count_include_pad", True)
    return F.avg_pool2d(args[0], window, stride, padding, count_include_pad=not counts) if any(padding) else None


def _ceiling(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    return with_argument(5 if "max" in function.__name__ else 4, "ceil_mode", False, False)(function, args, kw)


def _powers(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The mean of powers; PyTorch sums them."""
    power, window = argument(args, kw, 1, "norm_type", 2), argument(args, kw, 2, "kernel_size", 1)
    number = window ** (args[0].ndim - 2) if isinstance(window, int) else torch.Size(window).numel()
    return function(*args, **kw) / number ** (1 / power)


def _even_windows(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Windows of one size and stride."""
    size, x = argument(args, kw, 1, "output_size", 1), args[0]
    sizes = [size] * 2 if isinstance(size, int) else [*size]
    window = [n // s for n, s in zip(x.shape[2:], sizes, strict=True)]
    return F.avg_pool2d(x, window)[:, :, : sizes[0], : sizes[1]]


POOLS = (
    Trap(
        "max-pool-same",
        "between",
        MAX_POOL,
        _pool("same", -np.inf),
        "the pool pads like 'SAME'",
        "pass the padding as numbers, such as padding=((1, 1), (1, 1))",
        MAX_POOL_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "max-pool-pads-zero",
        "between",
        MAX_POOL,
        _pool("own", 0.0),
        "the pool pads with zeros; PyTorch with −∞",
        "pass padding= to nn.max_pool, which pads with −∞",
        MAX_POOL_PAGES,
    ),
    Trap(
        "max-pool-unpadded",
        "between",
        MAX_POOL,
        _pool("none", 0.0),
        "the pool does not pad",
        "pass the padding as numbers, such as padding=((1, 1), (1, 1))",
        MAX_POOL_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "pool-stride-one",
        "between",
        MAX_POOL + AVG_POOL,
        _pool_stride,
        "the pool has Flax's stride, 1",
        "pass strides=; PyTorch's default is the size of the window",
        MAX_POOL_PAGES,
        arguments=("strides",),
    ),
    Trap(
        "pool-is-average",
        "between",
        MAX_POOL,
        _pool("own", 0.0, True),
        "an average pool instead of a maximum",
        "use nn.max_pool",
        MAX_POOL_PAGES,
    ),
    Trap(
        "avg-pool-counts-padding",
        "between",
        AVG_POOL,
        _counting,
        "the average pool counts its padding differently from PyTorch's",
        "pass count_include_pad=, as PyTorch has it",
        AVG_POOL_PAGES,
        arguments=("count_include_pad",),
    ),
    Trap(
        "avg-pool-same",
        "between",
        AVG_POOL,
        _pool("same", 0.0, True),
        "the pool pads like 'SAME'",
        "pass the padding as numbers, such as padding=((1, 1), (1, 1))",
        AVG_POOL_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "global-pool-is-max",
        "between",
        GLOBAL,
        lambda _, a, kw: a[0].flatten(2).amax(2).reshape(*a[0].shape[:2], *[1] * (a[0].ndim - 2)),
        "the global pool takes the maximum; PyTorch the mean",
        "take the mean over the spatial axes",
        "torch.nn.AdaptiveAvgPool2d",
    ),
)

POOL_SETTINGS = (
    Trap(
        "pool-ceil-mode-lost",
        "between",
        MAX_POOL + AVG_POOL,
        _ceiling,
        "the last window is missing",
        "pad the end of each spatial axis for ceil_mode; leave that padding out of an average",
        "torch.nn.MaxPool2d: ceil_mode",
    ),
    Trap(
        "pool-dilation-lost",
        "between",
        MAX_POOL,
        with_argument(4, "dilation", 1, 1),
        "the window is not dilated",
        "use jax.lax.reduce_window with window_dilation=",
        MAX_POOL_PAGES,
    ),
    Trap(
        "avg-pool-divisor-lost",
        "between",
        AVG_POOL,
        with_argument(6, "divisor_override", None, None),
        "the sum is divided by the size of the window; PyTorch has another divisor",
        "multiply nn.avg_pool's output by window size / divisor_override",
        AVG_POOL_PAGES,
    ),
    Trap(
        "lp-pool-mean",
        "between",
        ("lp_pool1d", "lp_pool2d"),
        _powers,
        "powers are averaged, not summed",
        "sum the powers: multiply their mean by the size of the window, before the root",
        "torch.nn.LPPool2d",
    ),
    Trap(
        "adaptive-pool-windows",
        "between",
        ("adaptive_avg_pool2d",),
        _even_windows,
        "all windows have one size; PyTorch's go from floor to ceiling",
        "average input ⌊i·n/m⌋ up to, but not including, ⌈(i+1)·n/m⌉ for output i of m",
        "torch.nn.AdaptiveAvgPool2d",
    ),
)
