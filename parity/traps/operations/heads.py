"""Known mistakes in the order of heads, parts of packed tensors, patches and windows. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, made, name_of, through
from parity.traps.planting import Values
from parity.traps.trap import Trap

RESHAPE = ("reshape", "flatten", "unflatten")


def _reshaped(function: Any, args: Values, kw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The tensor that is reshaped, and the result."""
    return args[0], function(*args, **kw)


def _split(x: Tensor, y: Tensor) -> bool:
    """Whether the last axis of three is split into two."""
    return x.ndim + 1 == y.ndim == 4 and y.shape[:-2] == x.shape[:-1] and min(y.shape[-2:]) > 1


def _depth_first(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Put the depth before the heads."""
    x, y = _reshaped(function, args, kw)
    return x.reshape(*x.shape[:-1], y.shape[-1], y.shape[-2]).transpose(-1, -2) if _split(x, y) else None


def _merged(x: Tensor, y: Tensor) -> bool:
    """Whether the last two axes of four become one."""
    return x.ndim == y.ndim + 1 == 4 and y.shape[:-1] == x.shape[:-2] and min(x.shape[-2:]) > 1


def _merged_depth_first(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    x, y = _reshaped(function, args, kw)
    moved = made(x, "transpose", "permute") is not None
    return x.transpose(-1, -2).reshape(y.shape) if _merged(x, y) and moved else None


def _unmoved(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Reshape the tensor from before the exchange of axes."""
    x, y = _reshaped(function, args, kw)
    before = made(x, "transpose", "permute")
    fits = before is not None and y.ndim < x.ndim < 6
    return through(before[0]).reshape(y.shape) if before is not None and fits else None


def _split_unmoved(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Make the axis of heads before the axis of time, without an exchange."""
    x = args[0]
    split = made(x, "reshape", "unflatten")
    y = function(*args, **kw)
    if split is None or not _split(through(split[0]), x) or y.shape[1] != x.shape[2] or y.shape[2] != x.shape[1]:
        return None
    return through(split[0]).reshape(y.shape)


def _copies(x: Any) -> tuple[Tensor, int, int] | None:
    """The tensor that is repeated along an axis to give `x`, that axis, and how often; copies are neighbours."""
    call = made(x, "repeat_interleave")
    if call is not None:
        n, dim = call.argument(1, "repeats"), call.argument(2, "dim")
        return (call[0], dim % call[0].ndim, n) if isinstance(n, int) and isinstance(dim, int) else None
    call = made(x, "reshape", "flatten")
    expanded = made(call[0], "expand", "repeat", "broadcast_to") if call else None
    if call is None or expanded is None or call[0].ndim != x.ndim + 1:
        return None
    own, wide = expanded[0], call[0]
    axes = [i for i in range(wide.ndim) if own.ndim == wide.ndim and own.shape[i] == 1 < wide.shape[i]]
    if len(axes) != 1 or axes[0] == 0 or x.shape[axes[0] - 1] != own.shape[axes[0] - 1] * wide.shape[axes[0]]:
        return None
    return own.squeeze(axes[0]), axes[0] - 1, wide.shape[axes[0]]


def _tiled(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """All items, and then all again."""
    call = Call(name_of(function), function, args, kw)
    value = function(*args, **kw)
    value.made_of = call
    found = _copies(value)
    return None if found is None else torch.cat([found[0]] * found[2], found[1])


def _interleaved(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Each item next to its copies."""
    x, sizes = args[0], args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    more = [i for i, n in enumerate(sizes) if n > 1]
    if len(sizes) != x.ndim or len(more) != 1 or x.shape[more[0]] == 1:
        return None
    return x.repeat_interleave(sizes[more[0]], more[0])


def _packed_by_head(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Queries, keys and values grouped by head, or by kind; PyTorch has the other order."""
    x, y = _reshaped(function, args, kw)
    if y.ndim != x.ndim + 2 or y.shape[:-3] != x.shape[:-1] or 3 not in y.shape[-3:-1]:
        return None
    return x.reshape(*x.shape[:-1], y.shape[-2], y.shape[-3], y.shape[-1]).transpose(-3, -2)


def _parts(order: tuple[int, ...]) -> Callable[..., Any]:
    """Equal parts in another order."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> tuple[Tensor, ...] | None:
        parts = function(*args, **kw)
        fits = len(parts) == len(order) and len({part.shape for part in parts}) == 1
        return tuple(parts[i] for i in order) if fits else None

    return plant


def _pixels(change: Callable[[tuple[int, ...]], tuple[int, ...] | None]) -> Callable[..., Any]:
    """Patches with another order of pixels: (batch, rows, columns, then three axes of a patch) joined."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        x, y = _reshaped(function, args, kw)
        if x.ndim != 6 or y.ndim > 4 or y.shape[-1] != x.shape[3] * x.shape[4] * x.shape[5]:
            return None
        axes = change(tuple(x.shape[3:]))
        return None if axes is None else x.permute(0, 1, 2, *(3 + i for i in axes)).reshape(y.shape)

    return plant


def _channels_other_end(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The channels after the pixels, or before them: the side of a patch is the size that two axes share."""
    if shape[1] == shape[2] != shape[0]:
        return (1, 2, 0)
    return (2, 0, 1) if shape[0] == shape[1] != shape[2] else None


def _columns_first(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if shape[1] == shape[2] != shape[0]:
        return (0, 2, 1)
    return (1, 0, 2) if shape[0] == shape[1] != shape[2] else None


def _tokens_by_column(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The places of an image in the order of its columns."""
    x, y = _reshaped(function, args, kw)
    if x.ndim != 4 or y.ndim != 3:
        return None
    if y.shape == (*x.shape[:2], x.shape[2] * x.shape[3]):
        return None if made(x, "transpose", "permute", "stack") else x.transpose(2, 3).reshape(y.shape)
    return x.transpose(1, 2).reshape(y.shape) if y.shape == (x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) else None


def _grid_transposed(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """A sequence put back into an image with rows and columns exchanged."""
    x, y = _reshaped(function, args, kw)
    if x.ndim != 3 or y.ndim != 4:
        return None
    if y.shape[:2] == x.shape[:2] and y.shape[2] == y.shape[3]:
        return y.transpose(2, 3)
    return y.transpose(1, 2) if y.shape[-1] == x.shape[-1] and y.shape[1] == y.shape[2] else None


def _class_token_last(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """One token after all others; PyTorch puts it before them."""
    parts, dim = args[0] if args else kw["tensors"], args[1] if len(args) > 1 else kw.get("dim", 0)
    if len(parts) != 2 or dim != 1 or parts[0].ndim != 3 or not parts[0].shape[1] == 1 < parts[1].shape[1]:
        return None
    return function([parts[1], parts[0]], dim)


def _halves_in_other_order(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The two middle parts of four exchanged."""
    parts, dim = args[0] if args else kw["tensors"], args[1] if len(args) > 1 else kw.get("dim", 0)
    if len(parts) != 4 or len({part.shape for part in parts}) > 1:
        return None
    return function([parts[0], parts[2], parts[1], parts[3]], dim)


def _waves(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Sine and cosine of each frequency next to each other."""
    parts, dim = args[0] if args else kw["tensors"], args[1] if len(args) > 1 else kw.get("dim", 0)
    waves = {call.name for part in parts if (call := made(part, "sin", "cos")) is not None}
    if len(parts) != 2 or waves != {"sin", "cos"} or dim not in (-1, parts[0].ndim - 1):
        return None
    return torch.stack(list(parts), -1).flatten(-2)


def _waves_in_blocks(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """All sines, then all cosines."""
    parts = args[0] if args else kw["tensors"]
    waves = {call.name for part in parts if (call := made(part, "sin", "cos")) is not None}
    y = function(*args, **kw)
    if len(parts) != 2 or waves != {"sin", "cos"} or y.shape[-1] != 2:
        return None
    return torch.cat(list(parts), -1).reshape(y.shape)


def _windows_unmoved(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Windows cut without an exchange of axes."""
    x, y = _reshaped(function, args, kw)
    before = made(x, "permute", "transpose")
    fits = before is not None and x.ndim == 6 and y.ndim < 6
    return through(before[0]).reshape(y.shape) if before is not None and fits else None


def _row(name: str, where: Sequence[str], plant: Callable[..., Any], text: str, mend: str, source: str) -> Trap:
    return Trap(name, "between", tuple(where), plant, text, mend, source)


HEADS_AND_PARTS = (
    _row(
        "heads-depth-first",
        RESHAPE,
        _depth_first,
        "the features are split into depth and heads; PyTorch's model has the heads first",
        "reshape to (…, heads, depth)",
        "Vaswani et al. 2017, section 3.2.2",
    ),
    _row(
        "heads-merged-depth-first",
        RESHAPE,
        _merged_depth_first,
        "depth comes before heads when they are merged; PyTorch's model has the heads first",
        "transpose to (…, heads, depth) before the reshape",
        "Vaswani et al. 2017, section 3.2.2",
    ),
    _row(
        "heads-merged-unmoved",
        RESHAPE,
        _unmoved,
        "the axes are merged in their present order; PyTorch's model exchanges them first",
        "transpose before the reshape",
        "jsbaan/transformer-from-scratch#6",
    ),
    _row(
        "heads-split-unmoved",
        ("transpose", "permute"),
        _split_unmoved,
        "the heads are split off in place of time; PyTorch's model splits the features, and exchanges the axes",
        "reshape to (batch, time, heads, depth), then transpose",
        "reczoo/FuxiCTR#30",
    ),
    _row(
        "grouped-heads-tiled",
        ("repeat_interleave", "reshape", "flatten"),
        _tiled,
        "heads of keys and values are tiled; PyTorch's model repeats each for its group of queries",
        "repeat each head: jnp.repeat(k, query heads // key heads, axis)",
        "onnx/onnx#7274",
    ),
    _row(
        "grouped-heads-repeated",
        ("repeat",),
        _interleaved,
        "each item is repeated next to its copies; PyTorch's model tiles",
        "use jnp.tile",
        "Ainslie et al. 2023",
    ),
    _row(
        "packed-parts-by-head",
        RESHAPE,
        _packed_by_head,
        "queries, keys and values are unpacked in the other order: by head, or by kind",
        "reshape as PyTorch's model does: (3, heads, depth), or (heads, 3, depth)",
        "awslabs/slapo#46",
    ),
    _row(
        "packed-keys-first",
        ("chunk", "split", "unbind"),
        _parts((1, 0, 2)),
        "the first two of three parts are exchanged: keys before queries",
        "unpack in the order queries, keys, values",
        "Vaswani et al. 2017, section 3.2.2",
    ),
    _row(
        "packed-values-second",
        ("chunk", "split", "unbind"),
        _parts((0, 2, 1)),
        "the last two of three parts are exchanged: values before keys",
        "unpack in the order queries, keys, values",
        "tenstorrent/tt-mlir#8958",
    ),
)

PATCHES_AND_WAVES = (
    _row(
        "class-token-last",
        ("cat",),
        _class_token_last,
        "the class token comes after the patches; PyTorch's comes before them",
        "put the class token first: jnp.concatenate([token, patches], 1)",
        "Dosovitskiy et al. 2021",
    ),
    _row(
        "patch-channels-other-end",
        RESHAPE,
        _pixels(_channels_other_end),
        "the channels of a patch are at the other end of its pixels",
        "transpose the patches as PyTorch's model does",
        "cloneofsimo/minRF#6",
    ),
    _row(
        "patch-columns-first",
        RESHAPE,
        _pixels(_columns_first),
        "the pixels of a patch are in column order",
        "order the pixels of a patch by row, then by column",
        "NVIDIA/flashdreams#284",
    ),
    _row(
        "tokens-by-column",
        RESHAPE,
        _tokens_by_column,
        "the places of the image are read column by column; PyTorch's model reads rows",
        "reshape from (batch, rows, columns, channels), rows before columns",
        "MIC-DKFZ/dynamic-network-architectures#13",
    ),
    _row(
        "grid-transposed",
        RESHAPE,
        _grid_transposed,
        "the tokens are put back with rows and columns exchanged",
        "reshape to (batch, rows, columns, channels)",
        "huggingface/diffusers#11309",
    ),
    _row(
        "windows-unmoved",
        RESHAPE,
        _windows_unmoved,
        "windows or patches are cut by a reshape alone; PyTorch's model exchanges axes before",
        "transpose to (batch, rows, columns, height, width, channels), then reshape",
        "Liu et al. 2021",
    ),
    _row(
        "patch-merging-order",
        ("cat",),
        _halves_in_other_order,
        "the second and the third of four parts are exchanged",
        "join the parts in PyTorch's order",
        "Liu et al. 2021",
    ),
    _row(
        "waves-interleaved",
        ("cat",),
        _waves,
        "sines and cosines alternate; PyTorch's model has all sines, then all cosines",
        "join them in blocks: jnp.concatenate([sin, cos], -1)",
        "Vaswani et al. 2017, section 3.5",
    ),
    _row(
        "waves-in-blocks",
        ("stack",),
        _waves_in_blocks,
        "all sines come before all cosines; in PyTorch's model they alternate",
        "interleave them: jnp.stack([sin, cos], -1), then reshape",
        "tensorops/TransformerX#115",
    ),
)
