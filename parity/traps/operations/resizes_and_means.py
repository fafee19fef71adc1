"""Known mistakes in resizes, means, deviations and norms that are plain functions. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.operations.functions import RESIZE
from parity.traps.planting import Values, argument, with_argument
from parity.traps.trap import Trap

RESIZE_PAGES = "torch.nn.functional.interpolate, jax.image.resize"
MEAN_PAGES = "torch.mean, jax.numpy.mean"


def _spread(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    settings = {n: v for n, v in kw.items() if n not in ("correction", "unbiased")}
    return function(*args, **settings, correction=0) if not args[1:] or not isinstance(args[1], bool) else None


def _resized(**values: Any) -> Callable[..., Any]:
    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        mode = kw.get("mode", args[3] if len(args) > 3 else "nearest")
        if ("align_corners" in values) != (mode in ("bilinear", "bicubic")):
            return None
        settings = {**kw, **values}
        if settings.get("align_corners") == kw.get("align_corners", False) and "mode" not in values:
            return None
        return function(*args[:3], **settings)

    return plant


def _power(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    x = args[0]
    p, dim, eps = kw.get("p", 2.0), kw.get("dim", 1), kw.get("eps", 1e-12)
    return x / (x.norm(p, dim, keepdim=True) + eps) if eps else None


def _resize(own: str, **values: Any) -> Callable[..., Any]:
    """A resize with other settings, if PyTorch has this mode."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        if argument(args, kw, 3, "mode", "nearest") != own or len(args) > 3:
            return None
        settings = {**kw, **values}
        if settings["mode"].startswith("nearest"):
            settings.pop("align_corners", None)
        return function(*args, **settings)

    return plant


def _cubic(a: float) -> Callable[[Tensor], Tensor]:
    """Keys' cubic kernel."""

    def kernel(distance: Tensor) -> Tensor:
        d = distance.abs()
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))

    return kernel


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(0)


def _within(n: int, size: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The weights (size, n) of a resize without the pixels outside of the image, as in jax.image.resize."""
    at = (torch.arange(size).double() + 0.5) * (n / size) - 0.5
    weights = kernel(at[:, None] - torch.arange(n))
    return weights / weights.sum(-1, keepdim=True)


def _clamped(n: int, size: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The weights of a resize that repeats the border, as in PyTorch."""
    at = (torch.arange(size).double() + 0.5) * (n / size) - 0.5
    taps = at.floor()[:, None] + torch.arange(-1, 3)
    index = taps.clamp(0, n - 1).long()
    return torch.zeros(size, n).double().scatter_add(1, index, kernel(at[:, None] - taps))


def _by_weights(
    modes: Mapping[str, Callable[[Tensor], Tensor]], weights: Callable[..., Tensor], antialias: bool
) -> Callable[..., Any]:
    """A resize of images by weights for each axis, if PyTorch has one of these modes."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        x, mode = args[0], argument(args, kw, 3, "mode", "nearest")
        if mode not in modes or x.ndim != 4 or argument(args, kw, 4, "align_corners", None):
            return None
        if bool(argument(args, kw, 6, "antialias", False)) is not antialias:
            return None
        height, width = function(*args, **kw).shape[-2:]
        rows, columns = (
            weights(n, size, modes[mode]).to(x.dtype) for n, size in zip(x.shape[-2:], (height, width), strict=True)
        )
        return rows @ x @ columns.T

    return plant


def _axes(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """PyTorch's axes of an array whose channels are last."""
    dim = argument(args, kw, 1, "dim", None)
    if not isinstance(dim, tuple | list) or args[0].ndim != 4:
        return None
    return args[0].mean([(0, 2, 3, 1)[d] for d in dim], keepdim=argument(args, kw, 2, "keepdim", False))


def _summed(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    return args[0].sum(*args[1:], **kw) if args[1:] or "dim" in kw else None


def _averaged(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    x, y = args[0], function(*args, **kw)
    return y * (y.numel() / x.numel()) if x.is_floating_point() and y.numel() else None


def _largest(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    return args[0].amax(*args[1:], **kw) if args[1:] or "dim" in kw else None


def _channels_only(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Normalise over only the channels; PyTorch normalises over more axes."""
    x, shape = args[0], argument(args, kw, 1, "normalized_shape", ())
    if len(shape) < 2 or argument(args, kw, 2, "weight", None) is not None:
        return None
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=argument(args, kw, 4, "eps", 1e-5)).movedim(-1, 1)


def _epsilon(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    place = {"layer_norm": 4, "group_norm": 4, "instance_norm": 7, "rms_norm": 3}[function.__name__]
    return with_argument(place, "eps", 1e-5, 1e-6)(function, args, kw)


DEVIATIONS_AND_CORNERS = (
    Trap(
        "std-biased",
        "between",
        ("std", "var"),
        _spread,
        "the port divides by n; PyTorch divides by n − 1",
        "pass ddof=1",
        "torch.std, jax.numpy.std",
        arguments=("ddof",),
    ),
    Trap(
        "resize-corners",
        "between",
        RESIZE,
        lambda f, a, kw: _resized(align_corners=not kw.get("align_corners", False))(f, a, kw),
        "the resize aligns corners differently",
        "use jax.image.resize for align_corners=False; write the other form by hand",
        RESIZE_PAGES,
    ),
    Trap(
        "resize-nearest-exact",
        "between",
        RESIZE,
        _resized(mode="nearest-exact"),
        "jax.image.resize's nearest is PyTorch's nearest-exact",
        "repeat rows and columns with jnp.repeat, or take the pixels jnp.arange(m) * n // m",
        RESIZE_PAGES,
    ),
    Trap(
        "normalize-epsilon",
        "between",
        ("normalize",),
        _power,
        "epsilon is added to the norm; PyTorch takes the larger",
        "divide by jnp.maximum(norm, epsilon)",
        "torch.nn.functional.normalize",
    ),
)

RESIZES_AND_MEANS = (
    Trap(
        "resize-antialias",
        "between",
        RESIZE,
        _resize("bilinear", antialias=True, mode="bilinear"),
        "jax.image.resize averages where it shrinks; PyTorch does not",
        "pass antialias=False to jax.image.resize",
        RESIZE_PAGES,
        arguments=("antialias",),
    ),
    Trap(
        "resize-bicubic-kernel",
        "between",
        RESIZE,
        _resize("bicubic", antialias=True, mode="bicubic"),
        "the cubic kernel has a = −0.5; PyTorch's −0.75",
        "write the weights of the cubic kernel by hand, with a = −0.75",
        RESIZE_PAGES,
    ),
    Trap(
        "resize-bicubic-kernel-clamped",
        "between",
        RESIZE,
        _by_weights({"bicubic": _cubic(-0.5)}, _clamped, antialias=False),
        "the bicubic kernel has a = −0.5, and the border is repeated; PyTorch's has a = −0.75",
        "write the weights with a = −0.75",
        "Blaizzy/mlx-vlm#1241",
    ),
    Trap(
        "resize-antialias-missing",
        "between",
        RESIZE,
        _by_weights({"bilinear": _linear, "bicubic": _cubic(-0.5)}, _within, antialias=True),
        "the image is made smaller without antialiasing; PyTorch's model has antialias=True",
        "pass antialias=True to jax.image.resize",
        "sayakpaul/cmmd-pytorch#4",
        arguments=("antialias",),
    ),
    Trap(
        "resize-is-nearest",
        "between",
        RESIZE,
        _resize("bilinear", mode="nearest"),
        "nearest",
        "pass method='bilinear' to jax.image.resize",
        RESIZE_PAGES,
        arguments=("method",),
    ),
    Trap(
        "resize-is-bilinear",
        "between",
        RESIZE,
        _resize("nearest", mode="bilinear"),
        "bilinear",
        "repeat rows and columns with jnp.repeat, as PyTorch's mode='nearest' does",
        RESIZE_PAGES,
    ),
    Trap(
        "mean-axes",
        "between",
        ("mean",),
        _axes,
        "the mean goes over PyTorch's axes, although channels are last",
        "take the mean over axes (1, 2) where PyTorch has (2, 3)",
        MEAN_PAGES,
    ),
    Trap("mean-is-sum", "between", ("mean",), _summed, "a sum instead of a mean", "take the mean", MEAN_PAGES),
    Trap("sum-is-mean", "between", ("sum",), _averaged, "a mean instead of a sum", "take the sum", MEAN_PAGES),
    Trap("sum-is-max", "between", ("sum",), _largest, "a maximum instead of a sum", "take the sum", MEAN_PAGES),
    Trap("mean-is-max", "between", ("mean",), _largest, "a maximum instead of a mean", "take the mean", MEAN_PAGES),
    Trap(
        "layer-norm-channels-only",
        "between",
        ("layer_norm",),
        _channels_only,
        "the norm goes over the channels alone, Flax's default; PyTorch's goes over all of normalized_shape",
        "pass reduction_axes= with all axes of normalized_shape, such as (1, 2, 3)",
        "flax.linen.LayerNorm: reduction_axes",
        arguments=("reduction_axes",),
    ),
    Trap(
        "plain-norm-epsilon-1e-6",
        "between",
        ("layer_norm", "group_norm", "instance_norm"),
        _epsilon,
        "epsilon is 1e-6, which is Flax's default",
        "pass epsilon explicitly, as PyTorch has it",
        "torch.nn.functional.layer_norm",
        arguments=("epsilon",),
    ),
)
