"""Known mistakes in operations between layers: activations, pools, sums, reshapes. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from parity.traps.activations import ACTIVATIONS
from parity.traps.planting import Operation, Values, argument, instead
from parity.traps.rearrangements import REARRANGEMENTS


def _operand(i: int) -> Callable[..., Any]:
    """One of two summands alone."""

    def plant(_: Any, args: Values, kw: dict[str, Any]) -> Any:
        parts = [p for p in (*args, kw.get("other")) if isinstance(p, Tensor) and p.ndim > 1]
        return parts[i] if len(parts) == 2 and parts[0].shape == parts[1].shape else None

    return plant


def _windows(args: Values, kw: dict[str, Any], dims: int) -> tuple[list[int], list[int], list[int]]:
    """Window, stride and padding of a pool."""

    def each(value: Any) -> list[int]:
        return [value] * dims if isinstance(value, int) else list(value)

    window = each(argument(args, kw, 1, "kernel_size", 1))
    stride = argument(args, kw, 2, "stride", None)
    padding = each(argument(args, kw, 3, "padding", 0))
    return window, each(stride) if stride else window, padding


def _pool(pad: str, value: float, average: bool = False) -> Callable[..., Any]:
    """A pool that pads otherwise: `same` as XLA does, `own` as PyTorch, with `value`; `none` not at all."""

    def plant(own: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
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


def _pool_stride(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    x = args[0] if args else kw["input"]
    window, stride, padding = _windows(args, kw, x.ndim - 2)
    return function(x, window, 1, padding) if set(stride) != {1} and kw.get("dilation", 1) == 1 else None


def _counting(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    window, stride, padding = _windows(args, kw, 2)
    counts = argument(args, kw, 5, "count_include_pad", True)
    return F.avg_pool2d(args[0], window, stride, padding, count_include_pad=not counts) if any(padding) else None


def _flattened(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """The order of a channels-last flatten."""
    x = args[0]
    if x.ndim < 4 or x.shape[1] == 1 or (y := function(*args, **kw)).ndim != 2:
        return None
    return x.movedim(1, -1).reshape(y.shape)


def _joined(reverse: bool) -> Callable[..., Any]:
    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        parts = list(args[0] if args else kw["tensors"])
        return function(parts[::-1], *args[1:], **{n: v for n, v in kw.items() if n != "tensors"}) if reverse else None

    return plant


def _padded(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """The two sides of every axis exchanged."""
    pads = list(args[1] if len(args) > 1 else kw["pad"])
    other = [pads[i + 1 - 2 * (i % 2)] for i in range(len(pads))]
    rest = {n: v for n, v in kw.items() if n != "pad"}
    return function(args[0], other, *args[2:], **rest) if other != pads else None


def _zeros(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    pads = args[1] if len(args) > 1 else kw["pad"]
    mode = args[2] if len(args) > 2 else kw.get("mode", "constant")
    return None if mode == "constant" else F.pad(args[0], pads)


def _axis(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """Over axis 1, where the channels are in PyTorch."""
    axis = args[1] if len(args) > 1 else kw.get("dim", -1)
    ndim = args[0].ndim
    if not isinstance(axis, int):
        return None
    return function(args[0], dim=1 if axis % ndim == ndim - 1 else ndim - 1) if ndim > 2 else None


def _selected(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The first instead of the last, and the last instead of the first."""
    x, index = args
    index = index if isinstance(index, tuple) else (index,)
    other = tuple(-1 - i if isinstance(i, int) and not isinstance(i, bool) and i in (0, -1) else i for i in index)
    return x.__getitem__(other) if isinstance(x, Tensor) and other != index else None


def _spread(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    settings = {n: v for n, v in kw.items() if n not in ("correction", "unbiased")}
    return function(*args, **settings, correction=0) if not args[1:] or not isinstance(args[1], bool) else None


def _resized(**values: Any) -> Callable[..., Any]:
    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        mode = kw.get("mode", args[3] if len(args) > 3 else "nearest")
        if ("align_corners" in values) != (mode in ("bilinear", "bicubic")):
            return None
        settings = {**kw, **values}
        if settings.get("align_corners") == kw.get("align_corners", False) and "mode" not in values:
            return None
        return function(*args[:3], **settings)

    return plant


def _power(_: Any, args: Values, kw: dict[str, Any]) -> Any:
    x = args[0]
    p, dim, eps = kw.get("p", 2.0), kw.get("dim", 1), kw.get("eps", 1e-12)
    return x / (x.norm(p, dim, keepdim=True) + eps) if eps else None


RELU, GELU = ("relu", "relu_"), ("gelu",)
MAX_POOL, AVG_POOL = ("max_pool1d", "max_pool2d", "max_pool3d"), ("avg_pool1d", "avg_pool2d", "avg_pool3d")
ADD = ("add", "add_", "__add__", "__iadd__", "__radd__")
FLAT, JOIN, PAD = ("flatten", "reshape", "view"), ("cat", "concat", "concatenate"), ("pad",)
GLOBAL = ("adaptive_avg_pool2d", "adaptive_avg_pool1d")

OPERATIONS = (
    Operation("relu-missing", RELU, instead(lambda x: x), "there is no ReLU; PyTorch has one", "add nn.relu"),
    Operation("relu-is-gelu", RELU, instead(lambda x: F.gelu(x, approximate="tanh")), "GELU for ReLU", "use nn.relu"),
    Operation("relu-is-silu", RELU, instead(F.silu), "SiLU for ReLU", "use nn.relu"),
    Operation("relu-is-leaky", RELU, instead(F.leaky_relu), "a leaky ReLU for ReLU", "use nn.relu"),
    Operation("relu-is-relu6", RELU, instead(F.relu6), "ReLU6 for ReLU", "use nn.relu"),
    Operation(
        "gelu-tanh",
        GELU,
        lambda f, a, kw: f(a[0], approximate="none" if kw.get("approximate") == "tanh" else "tanh"),
        "GELU's other form: Flax's default is the tanh approximation, PyTorch's the error function",
        "give approximate= as PyTorch has it",
    ),
    Operation("gelu-missing", GELU, instead(lambda x: x), "there is no GELU; PyTorch has one", "add nn.gelu"),
    Operation(
        "leaky-slope",
        ("leaky_relu",),
        lambda f, a, kw: f(a[0]) if (a[1:] or [kw.get("negative_slope", 0.01)])[0] != 0.01 else None,
        "the leaky ReLU has Flax's default slope, 0.01",
        "pass negative_slope",
    ),
    Operation("silu-missing", ("silu",), instead(lambda x: x), "there is no SiLU; PyTorch has one", "add nn.silu"),
    Operation("sum-lacks-second", ADD, _operand(0), "a sum lacks its second part", "add it"),
    Operation("sum-lacks-first", ADD, _operand(1), "a sum lacks its first part", "add it"),
    Operation(
        "max-pool-same", MAX_POOL, _pool("same", -np.inf), "the pool pads like 'SAME'", "give padding as numbers"
    ),
    Operation(
        "max-pool-pads-zero", MAX_POOL, _pool("own", 0.0), "the pool pads with zeros; PyTorch with −∞", "padding="
    ),
    Operation("max-pool-unpadded", MAX_POOL, _pool("none", 0.0), "the pool does not pad", "give padding as numbers"),
    Operation("pool-stride-one", MAX_POOL + AVG_POOL, _pool_stride, "the pool has Flax's stride, 1", "pass strides"),
    Operation("pool-is-average", MAX_POOL, _pool("own", 0.0, True), "an average pool for a maximum", "use nn.max_pool"),
    Operation(
        "avg-pool-counts-padding",
        AVG_POOL,
        _counting,
        "the average pool counts its padding otherwise than PyTorch's",
        "pass count_include_pad",
    ),
    Operation(
        "avg-pool-same", AVG_POOL, _pool("same", 0.0, True), "the pool pads like 'SAME'", "give padding as numbers"
    ),
    Operation(
        "global-pool-is-max",
        GLOBAL,
        lambda _, a, kw: a[0].flatten(2).amax(2).reshape(*a[0].shape[:2], *[1] * (a[0].ndim - 2)),
        "the global pool takes the maximum; PyTorch the mean",
        "take the mean over the spatial axes",
    ),
    Operation(
        "flatten-channels-last",
        FLAT,
        _flattened,
        "the flatten goes channels last; PyTorch's goes channels first",
        "x.transpose(0, 3, 1, 2) before the reshape",
    ),
    Operation("concat-order", JOIN, _joined(True), "the parts are joined in the other order", "exchange the parts"),
    Operation("pad-other-side", PAD, _padded, "the odd row or column is padded at the other side", "exchange the pads"),
    Operation("pad-zeros", PAD, _zeros, "zeros for PyTorch's other padding mode", "jnp.pad with its mode"),
    Operation("softmax-axis", ("softmax", "log_softmax"), _axis, "the softmax goes along another axis", "pass axis"),
    Operation(
        "last-is-first",
        ("__getitem__",),
        _selected,
        "the other end is taken",
        "x[:, -1] is the last, x[:, 0] the first",
    ),
    Operation("std-biased", ("std", "var"), _spread, "over n; PyTorch divides by n − 1", "pass ddof=1"),
    Operation(
        "resize-corners",
        ("interpolate",),
        lambda f, a, kw: _resized(align_corners=not kw.get("align_corners", False))(f, a, kw),
        "the corners of the resize are aligned otherwise",
        "jax.image.resize has align_corners=False; write the other form by hand",
    ),
    Operation(
        "resize-nearest-exact",
        ("interpolate",),
        _resized(mode="nearest-exact"),
        "jax.image.resize's nearest is PyTorch's nearest-exact",
        "repeat rows and columns",
    ),
    Operation(
        "normalize-epsilon",
        ("normalize",),
        _power,
        "epsilon is added to the norm; PyTorch takes the larger",
        "jnp.maximum",
    ),
    *ACTIVATIONS,
    *REARRANGEMENTS,
)
