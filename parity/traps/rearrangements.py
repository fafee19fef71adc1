"""Known mistakes in pools, resizes, rearrangements, attention and inputs. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.planting import INPUT, Operation, Values, argument

MAX, AVG = ("max_pool1d", "max_pool2d", "max_pool3d"), ("avg_pool1d", "avg_pool2d", "avg_pool3d")
ATTENTION, RECURRENT = ("scaled_dot_product_attention",), ("lstm", "gru", "rnn_tanh", "rnn_relu")
PIXEL_MEAN, PIXEL_STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def _with(i: int, name: str, default: Any, value: Any) -> Callable[..., Any]:
    """The same call with another setting; None where it has it already."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        old = argument(args, kw, i, name, default)
        new = value(old) if callable(value) else value
        if old is new or (not isinstance(old, Tensor) and old == new):
            return None
        if len(args) > i:
            return function(*args[:i], new, *args[i + 1 :], **kw)
        return function(*args, **{**kw, name: new})

    return plant


def _ceiling(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    return _with(5 if "max" in function.__name__ else 4, "ceil_mode", False, False)(function, args, kw)


def _powers(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """The mean of powers, where PyTorch sums them."""
    power, window = argument(args, kw, 1, "norm_type", 2), argument(args, kw, 2, "kernel_size", 1)
    number = window ** (args[0].ndim - 2) if isinstance(window, int) else torch.Size(window).numel()
    return function(*args, **kw) / number ** (1 / power)


def _even_windows(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """Windows of one size and stride."""
    size, x = argument(args, kw, 1, "output_size", 1), args[0]
    sizes = [size] * 2 if isinstance(size, int) else [*size]
    window = [n // s for n, s in zip(x.shape[2:], sizes, strict=True)]
    return F.avg_pool2d(x, window)[:, :, : sizes[0], : sizes[1]]


def _depth_first(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """The place within a pixel before the channel."""
    x, r = args[0], argument(args, kw, 1, "upscale_factor", 1)
    b, c, h, w = x.shape
    return x.reshape(b, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // r**2, h * r, w * r)


def _depth_last(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    y, r = function(*args, **kw), argument(args, kw, 1, "downscale_factor", 1)
    b, c, h, w = y.shape
    return y.reshape(b, c // r**2, r * r, h, w).transpose(1, 2).reshape(y.shape)


def _other_groups(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    groups = argument(args, kw, 1, "groups", 1)
    other = args[0].shape[1] // groups
    return function(args[0], other) if other != groups else None


def _reversed(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    parts = function(*args, **kw)
    return parts[::-1] if len({p.shape for p in parts}) == 1 and len(parts) > 1 else None


def _interleaved(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    parts, dim = function(*args, **kw), argument(args, kw, 2, "dim", 0)
    if len({p.shape for p in parts}) > 1:
        return None
    length = args[0].shape[dim]
    return tuple(args[0].index_select(dim, torch.arange(i, length, len(parts))) for i in range(len(parts)))


def _other_way(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    shifts = argument(args, kw, 1, "shifts", 0)
    back = -shifts if isinstance(shifts, int) else tuple(-s for s in shifts)
    return _with(1, "shifts", 0, back)(function, args, kw)


def _mask(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """The opposite sense."""
    if function.__name__ == "where":
        return function(~args[0], *args[1:]) if len(args) > 2 else None
    mask = argument(args, kw, 1, "mask", None)
    return function(args[0], ~mask, argument(args, kw, 2, "value", 0.0))


def _opposite(mask: Any) -> Any:
    return ~mask if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def _resize(own: str, **values: Any) -> Callable[..., Any]:
    """A resize with other settings, where PyTorch has this mode."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        if argument(args, kw, 3, "mode", "nearest") != own or len(args) > 3:
            return None
        settings = {**kw, **values}
        if settings["mode"].startswith("nearest"):
            settings.pop("align_corners", None)
        return function(*args, **settings)

    return plant


def _axes(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """PyTorch's axes of an array whose channels are last."""
    dim = argument(args, kw, 1, "dim", None)
    if not isinstance(dim, tuple | list) or args[0].ndim != 4:
        return None
    return args[0].mean([(0, 2, 3, 1)[d] for d in dim], keepdim=argument(args, kw, 2, "keepdim", False))


def _summed(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    return args[0].sum(*args[1:], **kw) if args[1:] or "dim" in kw else None


def _largest(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    return args[0].amax(*args[1:], **kw) if args[1:] or "dim" in kw else None


def _channels_only(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """Over the channels alone, where PyTorch normalises over more."""
    x, shape = args[0], argument(args, kw, 1, "normalized_shape", ())
    if len(shape) < 2 or argument(args, kw, 2, "weight", None) is not None:
        return None
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=argument(args, kw, 4, "eps", 1e-5)).movedim(-1, 1)


def _epsilon(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    place = {"layer_norm": 4, "group_norm": 4, "instance_norm": 7, "rms_norm": 3}[function.__name__]
    return _with(place, "eps", 1e-5, 1e-6)(function, args, kw)


def _directions(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """The output of a bidirectional layer with its two halves changed."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        output, *rest = function(*args, **kw)
        layers, bidirectional, batch_first = args[4], args[7], args[8]
        if not bidirectional or layers != 1:
            return None
        time = 1 if batch_first else 0
        ahead, back = output.chunk(2, -1)
        return change(ahead, back.flip(time)) if change is _kept else torch.cat([back, ahead], -1), *rest

    return plant


def _kept(ahead: Tensor, back: Tensor) -> Tensor:
    return torch.cat([ahead, back], -1)


def _pixels(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Of images with three channels."""
    return lambda _, args, kw: change(args[0]) if args[0].ndim == 4 and args[0].shape[1] == 3 else None


def _channelwise(t: Tensor) -> Tensor:
    return t.double().reshape(3, 1, 1)


BIDIRECTIONAL = "nnx.Bidirectional and linen.Bidirectional do both"
REARRANGEMENTS = (
    Operation("pool-ceil-mode-lost", MAX + AVG, _ceiling, "the last window is missing", "pad behind for ceil_mode"),
    Operation("pool-dilation-lost", MAX, _with(4, "dilation", 1, 1), "the window is not dilated", "lax.reduce_window"),
    Operation(
        "avg-pool-divisor-lost",
        AVG,
        _with(6, "divisor_override", None, None),
        "the average is over the window; PyTorch has another divisor",
        "multiply by window / divisor",
    ),
    Operation("lp-pool-mean", ("lp_pool1d", "lp_pool2d"), _powers, "powers are averaged, not summed", "sum them"),
    Operation(
        "adaptive-pool-windows",
        ("adaptive_avg_pool2d",),
        _even_windows,
        "all windows have one size; PyTorch's go from floor to ceiling",
        "average from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉",
    ),
    Operation(
        "pixel-shuffle-order",
        ("pixel_shuffle",),
        _depth_first,
        "the channel is the last part of a pixel's depth; PyTorch has it first",
        "reshape to (…, channels, r, r)",
    ),
    Operation(
        "pixel-unshuffle-order",
        ("pixel_unshuffle",),
        _depth_last,
        "the channel is the last part of a pixel's depth; PyTorch has it first",
        "transpose to (…, channels, r, r)",
    ),
    Operation("channel-shuffle-groups", ("channel_shuffle",), _other_groups, "groups and their sizes", "exchange them"),
    Operation("chunks-exchanged", ("chunk", "split", "unbind"), _reversed, "the parts are exchanged", "other order"),
    Operation(
        "chunks-interleaved", ("chunk", "split"), _interleaved, "every n-th is taken; PyTorch's are blocks", "jnp.split"
    ),
    Operation("roll-sign", ("roll",), _other_way, "rolled the other way", "jnp.roll has PyTorch's sign"),
    Operation("flip-missing", ("flip",), lambda _, a, kw: a[0], "there is no flip; PyTorch has one", "jnp.flip"),
    Operation("mask-sense", ("masked_fill", "masked_fill_", "where"), _mask, "the mask's sense is opposite", "~mask"),
    Operation(
        "attention-not-causal",
        ATTENTION,
        _with(5, "is_causal", False, False),
        "the attention sees what comes later; PyTorch's is causal",
        "is_causal=True, or nn.make_causal_mask",
    ),
    Operation("attention-unscaled", ATTENTION, _with(6, "scale", None, 1.0), "no scale 1 / √depth", "scale=None"),
    Operation(
        "attention-mask-sense",
        ATTENTION,
        _with(3, "attn_mask", None, _opposite),
        "the mask's sense is opposite",
        "true is where attention is, in both functions",
    ),
    Operation("attention-mask-lost", ATTENTION, _with(3, "attn_mask", None, None), "there is no mask", "pass mask"),
    Operation(
        "resize-antialias",
        ("interpolate",),
        _resize("bilinear", antialias=True, mode="bilinear"),
        "jax.image.resize averages where it shrinks; PyTorch does not",
        "antialias=False",
    ),
    Operation(
        "resize-bicubic-kernel",
        ("interpolate",),
        _resize("bicubic", antialias=True, mode="bicubic"),
        "the cubic kernel has a = −0.5; PyTorch's −0.75",
        "write the weights by hand",
    ),
    Operation("resize-is-nearest", ("interpolate",), _resize("bilinear", mode="nearest"), "nearest", "'bilinear'"),
    Operation("resize-is-bilinear", ("interpolate",), _resize("nearest", mode="bilinear"), "bilinear", "repeat pixels"),
    Operation("mean-axes", ("mean",), _axes, "over PyTorch's axes, where channels are last", "over axes (1, 2)"),
    Operation("mean-is-sum", ("mean",), _summed, "a sum for a mean", "take the mean"),
    Operation("mean-is-max", ("mean",), _largest, "a maximum for a mean", "take the mean"),
    Operation(
        "layer-norm-channels-only",
        ("layer_norm",),
        _channels_only,
        "normalised over the channels alone, Flax's default; PyTorch's over all of normalized_shape",
        "reduction_axes=(1, 2, 3)",
    ),
    Operation(
        "plain-norm-epsilon-1e-6",
        ("layer_norm", "group_norm", "instance_norm"),
        _epsilon,
        "epsilon is 1e-6, which is Flax's default",
        "pass epsilon explicitly",
    ),
    Operation(
        "directions-exchanged", RECURRENT, _directions(lambda a, b: b), "the backward half is first", BIDIRECTIONAL
    ),
    Operation(
        "backward-half-reversed",
        RECURRENT,
        _directions(_kept),
        "the backward half stands in the order in which it was computed, RNN's default",
        "keep_order=True",
    ),
    Operation("input-bgr", (INPUT,), _pixels(lambda x: x.flip(1)), "BGR for RGB", "do not reverse the channels"),
    Operation("input-times-255", (INPUT,), lambda _, a, kw: a[0] * 255, "the input is multiplied by 255", "leave it"),
    Operation("input-by-255", (INPUT,), lambda _, a, kw: a[0] / 255, "the input is divided by 255", "leave it"),
    Operation(
        "input-normalised-again",
        (INPUT,),
        _pixels(lambda x: (x - _channelwise(PIXEL_MEAN)) / _channelwise(PIXEL_STD)),
        "ImageNet's mean and standard deviation are taken once more",
        "normalise in one place",
    ),
)
