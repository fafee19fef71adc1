"""Known mistakes in flattening, joining, padding, splitting and shuffling. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.planting import Values, argument, with_argument
from parity.traps.trap import Trap

FLAT, UNFLAT = ("flatten", "reshape", "view"), ("reshape", "view", "unflatten")
JOIN, PAD = ("cat", "concat", "concatenate"), ("pad",)


def _flattened(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Flatten in channels-last order."""
    x = args[0]
    if x.ndim < 4 or x.shape[1] == 1 or (y := function(*args, **kw)).ndim != 2:
        return None
    return x.movedim(1, -1).reshape(y.shape)


def _unflattened(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Make an image of a vector in channels-last order."""
    x = args[0]
    if x.ndim != 2 or (y := function(*args, **kw)).ndim < 4 or len(x) != len(y) or y.shape[1] == 1:
        return None
    return x.reshape(len(x), *y.shape[2:], y.shape[1]).movedim(-1, 1)


def _joined(reverse: bool) -> Callable[..., Any]:
    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
        parts = list(args[0] if args else kw["tensors"])
        return function(parts[::-1], *args[1:], **{n: v for n, v in kw.items() if n != "tensors"}) if reverse else None

    return plant


def _padded(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Exchange the padding before and after, in every axis."""
    pads = list(args[1] if len(args) > 1 else kw["pad"])
    other = [pads[i + 1 - 2 * (i % 2)] for i in range(len(pads))]
    rest = {n: v for n, v in kw.items() if n != "pad"}
    return function(args[0], other, *args[2:], **rest) if other != pads else None


def _both_sides(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """If an axis is padded at one side, pad the other side as much."""
    pads = list(args[1] if len(args) > 1 else kw["pad"])
    other = [max(pads[i], pads[i + 1 - 2 * (i % 2)]) for i in range(len(pads))]
    rest = {n: v for n, v in kw.items() if n != "pad"}
    return function(args[0], other, *args[2:], **rest) if other != pads else None


def _zeros(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    pads = args[1] if len(args) > 1 else kw["pad"]
    mode = args[2] if len(args) > 2 else kw.get("mode", "constant")
    return None if mode == "constant" else F.pad(args[0], pads)


def _extended(own: str, other: str) -> Callable[..., Any]:
    """Pad in another of NumPy's modes, if PyTorch's is this one."""

    def plant(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
        x, pads = args[0], argument(args, kw, 1, "pad", ())
        if argument(args, kw, 2, "mode", "constant") != own:
            return None
        for i in range(len(pads) // 2):
            size = x.shape[-1 - i]
            places = np.pad(np.arange(size), (pads[2 * i], pads[2 * i + 1]), mode=cast(Any, other))
            x = x.index_select(x.ndim - 1 - i, torch.from_numpy(places))
        return x

    return plant


def _axis(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Work along axis 1, where PyTorch has the channels."""
    axis = args[1] if len(args) > 1 else kw.get("dim", -1)
    ndim = args[0].ndim
    if not isinstance(axis, int):
        return None
    return function(args[0], dim=1 if axis % ndim == ndim - 1 else ndim - 1) if ndim > 2 else None


def _selected(_: object, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Take the first instead of the last, and the last instead of the first."""
    x, index = args
    index = index if isinstance(index, tuple) else (index,)
    other = tuple(-1 - i if isinstance(i, int) and not isinstance(i, bool) and i in (0, -1) else i for i in index)
    return x.__getitem__(other) if isinstance(x, Tensor) and other != index else None


def _depth_first(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Put the place within a pixel before the channel."""
    x, r = args[0], argument(args, kw, 1, "upscale_factor", 1)
    b, c, h, w = x.shape
    return x.reshape(b, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // r**2, h * r, w * r)


def _depth_last(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    y, r = function(*args, **kw), argument(args, kw, 1, "downscale_factor", 1)
    b, c, h, w = y.shape
    return y.reshape(b, c // r**2, r * r, h, w).transpose(1, 2).reshape(y.shape)


def _other_groups(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    groups = argument(args, kw, 1, "groups", 1)
    other = args[0].shape[1] // groups
    return function(args[0], other) if other != groups else None


def _reversed(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> tuple[Tensor, ...] | None:
    parts = function(*args, **kw)
    return parts[::-1] if len({p.shape for p in parts}) == 1 and len(parts) > 1 else None


def _interleaved(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> tuple[Tensor, ...] | None:
    parts, dim = function(*args, **kw), argument(args, kw, 2, "dim", 0)
    if len({p.shape for p in parts}) > 1:
        return None
    length = args[0].shape[dim]
    return tuple(args[0].index_select(dim, torch.arange(i, length, len(parts))) for i in range(len(parts)))


def _other_way(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    shifts = argument(args, kw, 1, "shifts", 0)
    back = -shifts if isinstance(shifts, int) else tuple(-s for s in shifts)
    return with_argument(1, "shifts", 0, back)(function, args, kw)


def _mask(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The opposite sense."""
    if function.__name__ == "where":
        return function(~args[0], *args[1:]) if len(args) > 2 else None
    mask = argument(args, kw, 1, "mask", None)
    return function(args[0], ~mask, argument(args, kw, 2, "value", 0.0))


JOINS_AND_AXES = (
    Trap(
        "flatten-channels-last",
        "between",
        FLAT,
        _flattened,
        "the flatten goes channels last; PyTorch's goes channels first",
        "transpose to channels first before the reshape: x.transpose(0, 3, 1, 2)",
        "Flax guide, Convert PyTorch models to Flax",
    ),
    Trap(
        "unflatten-channels-last",
        "between",
        UNFLAT,
        _unflattened,
        "the vector becomes an image with its channels last; PyTorch's has its channels first",
        "reshape to channels first, then transpose: x.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)",
        "Flax guide, Convert PyTorch models to Flax",
    ),
    Trap(
        "concat-order",
        "between",
        JOIN,
        _joined(True),
        "the parts are joined in the other order",
        "exchange the parts",
        "torch.cat, jax.numpy.concatenate",
    ),
    Trap(
        "pad-other-side",
        "between",
        PAD,
        _padded,
        "the odd row or column of padding is at the other side",
        "exchange the numbers before and after in each axis's padding",
        "torch.nn.functional.pad, jax.numpy.pad",
    ),
    Trap(
        "pad-both-sides",
        "between",
        PAD,
        _both_sides,
        "both sides are padded; PyTorch's model pads one",
        "pad one side only, such as padding=((0, 1), (0, 1))",
        "huggingface/diffusers#5137",
    ),
    Trap(
        "pad-symmetric",
        "between",
        PAD,
        _extended("reflect", "symmetric"),
        "the padding repeats the outer values, as NumPy's 'symmetric' does; PyTorch's 'reflect' leaves them out",
        "pass mode='reflect' to jnp.pad",
        "torch.nn.functional.pad, numpy.pad",
    ),
    Trap(
        "pad-reflect-is-edge",
        "between",
        PAD,
        _extended("reflect", "edge"),
        "the padding repeats the outer values; PyTorch's 'reflect' mirrors the values behind them",
        "pass mode='reflect' to jnp.pad",
        "torch.nn.functional.pad, numpy.pad",
    ),
    Trap(
        "pad-edge-is-reflect",
        "between",
        PAD,
        _extended("replicate", "reflect"),
        "the padding mirrors the values; PyTorch's 'replicate' repeats the outer ones",
        "pass mode='edge' to jnp.pad",
        "torch.nn.functional.pad, numpy.pad",
    ),
    Trap(
        "pad-zeros",
        "between",
        PAD,
        _zeros,
        "the port pads with zeros; PyTorch has another padding mode",
        "pass jnp.pad PyTorch's mode: 'reflect', 'edge' for replicate, 'wrap' for circular",
        "torch.nn.functional.pad, jax.numpy.pad",
        arguments=("mode",),
    ),
    Trap(
        "softmax-axis",
        "between",
        ("softmax", "log_softmax"),
        _axis,
        "the softmax goes along another axis",
        "pass axis=, where PyTorch's dim is in the channels-last array",
        "torch.nn.Softmax, jax.nn.softmax",
        arguments=("axis",),
    ),
    Trap(
        "last-is-first",
        "between",
        ("__getitem__",),
        _selected,
        "the other end is taken",
        "take the other end: x[:, -1] is the last, x[:, 0] the first",
        "torch.Tensor.__getitem__",
    ),
)

REARRANGEMENTS = (
    Trap(
        "pixel-shuffle-order",
        "between",
        ("pixel_shuffle",),
        _depth_first,
        "the channel is the last part of the depth; in PyTorch it is the first",
        "reshape the channels to (…, channels, r, r), channels first",
        "torch.nn.PixelShuffle",
    ),
    Trap(
        "pixel-unshuffle-order",
        "between",
        ("pixel_unshuffle",),
        _depth_last,
        "the channel is the last part of the depth; in PyTorch it is the first",
        "transpose to (…, channels, r, r) before the reshape",
        "torch.nn.PixelShuffle",
    ),
    Trap(
        "channel-shuffle-groups",
        "between",
        ("channel_shuffle",),
        _other_groups,
        "groups and their sizes",
        "reshape to (…, groups, channels // groups), then exchange these two axes",
        "Zhang et al. 2018 (ShuffleNet), figure 1",
    ),
    Trap(
        "chunks-exchanged",
        "between",
        ("chunk", "split", "unbind"),
        _reversed,
        "the parts are exchanged",
        "take the parts in the other order",
        "torch.chunk, jax.numpy.split",
    ),
    Trap(
        "chunks-interleaved",
        "between",
        ("chunk", "split"),
        _interleaved,
        "every n-th entry is taken; PyTorch takes blocks",
        "use jnp.split",
        "torch.chunk, jax.numpy.split",
    ),
    Trap(
        "roll-sign",
        "between",
        ("roll",),
        _other_way,
        "rolled the other way",
        "pass jnp.roll PyTorch's shifts with the same sign",
        "torch.roll, jax.numpy.roll",
        arguments=("shift",),
    ),
    Trap(
        "flip-missing",
        "between",
        ("flip",),
        lambda _, a, kw: a[0],
        "there is no flip; PyTorch has one",
        "add jnp.flip",
        "torch.flip, jax.numpy.flip",
    ),
    Trap(
        "mask-sense",
        "between",
        ("masked_fill", "masked_fill_", "where"),
        _mask,
        "the mask is inverted",
        "invert the mask: ~mask",
        "torch.Tensor.masked_fill, jax.numpy.where",
    ),
)
