"""Nested values of a network as named arrays, and the layouts in which the frameworks hold the same array.

PyTorch's layout is the reference. The shape of a Flax array tells its layout. If two layouts fit, the one nearer to the
reference counts, because a port may hold its activations in any layout.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
Shape = tuple[int, ...]

# By name: the axes that bring a PyTorch array with this many dimensions into the layout.
LAYOUTS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "channels_last": lambda n: (0, *range(2, n), 1),
    "same": lambda n: tuple(range(n)),
    "batch_second": lambda n: (1, 0, *range(2, n)),
    # A video is (batch, frames, channels, height, width) in transformers, and has its channels last here.
    "frames_first": lambda n: (0, 1, 3, 4, 2) if n == 5 else tuple(range(n)),
}


def wide(array: Any) -> np.ndarray:
    """Return numbers in float64; complex ones in complex128."""
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)


def axes(layout: str, dimensions: int) -> tuple[int, ...]:
    """The axes that bring a PyTorch array into `layout`; arrays of fewer than three dimensions have only one layout."""
    return LAYOUTS[layout](dimensions) if dimensions > 2 else tuple(range(dimensions))


def to_flax(array: Any, layout: str) -> Any:
    return array.transpose(axes(layout, array.ndim))


def to_reference(array: Any, layout: str) -> Any:
    return array.transpose(tuple(np.argsort(axes(layout, array.ndim))))


def default_layout(array: Any) -> str:
    """The default layout of an input: batches of images, volumes and the like have their channels last in Flax."""
    return "channels_last" if array.ndim > 3 and np.issubdtype(array.dtype, np.floating) else "same"


def otherwise(inputs: Any, keywords: Mapping[str, Any], given: Mapping[str, str]) -> list[dict[str, str]]:
    """Return layouts of inputs other than the default ones, for a port that does not accept the defaults.

    Images as PyTorch holds them, sequences with their channels last, both, then videos with their frames first.

    Args:
        given: the layouts that the caller asked for, which stay.
    """
    arrays = [*leaves(inputs, "input"), *leaves(keywords, "keyword")]
    free = {name: a for name, a in arrays if name not in given and a.ndim > 2 and np.issubdtype(a.dtype, np.floating)}
    images = {name: "same" for name, array in free.items() if default_layout(array) == "channels_last"}
    sequences = {name: "channels_last" for name in free if name not in images}
    videos = {name: "frames_first" for name, array in free.items() if array.ndim == 5}
    return [{**given, **some} for some in (images, sequences, images | sequences, videos) if some]


def layout_of(got: Any, expected: np.ndarray) -> str | None:
    """The layout in which `got` is nearest to `expected`; None if no layout fits its shape."""
    fitting = {}
    for layout in LAYOUTS:
        if got.ndim == expected.ndim and to_reference(got, layout).shape == expected.shape:
            fitting.setdefault(axes(layout, got.ndim), layout)
    if len(fitting) < 2:
        return next(iter(fitting.values()), None)

    def far(layout: str) -> float:
        difference = wide(to_reference(got, layout)) - expected
        total = float(np.real(np.vdot(difference, difference)))
        return total if np.isfinite(total) else np.inf

    return min(fitting.values(), key=far)


def fitting(expected: tuple[int, ...], got: tuple[int, ...]) -> str | None:
    """Return the first layout in which an array of PyTorch's shape has the shape `got`; None if there is none.

    With four dimensions or more, it assumes channels last.
    """
    order = LAYOUTS if len(got) > 3 else ("same", *LAYOUTS)
    return next((a for a in order if tuple(expected[i] for i in axes(a, len(expected))) == got), None)


def unclear(expected: tuple[int, ...], got: tuple[int, ...]) -> bool:
    """Return whether an array of PyTorch's shape has the shape `got` in several layouts: only numbers decide."""
    ways = {axes(layout, len(expected)) for layout in LAYOUTS}
    return sum(tuple(expected[i] for i in way) == got for way in ways) > 1


def nearest(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    """Return the layout in which an array of PyTorch's shape has the most lengths in common with the shape `got`."""
    order = LAYOUTS if len(got) > 3 else ("same", *LAYOUTS)
    return max(order, key=lambda a: sum(expected[i] == n for i, n in zip(axes(a, len(expected)), got, strict=True)))


def cut(a: Shape, b: Shape) -> bool:
    """Return whether one shape has several axes for axes of the other: heads and their features, rows and columns.

    Then one array is the other, reshaped.
    """
    whole, parts = sorted((a, b), key=len)
    if len(whole) == len(parts) or 0 in parts:
        return False
    ends = [set(accumulate(shape, operator.mul)) for shape in (whole, parts)]
    return math.prod(whole) == math.prod(parts) and ends[0] <= ends[1]


def aligned(got: Any, expected: np.ndarray | None, cuts: bool = False) -> np.ndarray:
    """`got` in the layout of `expected`, or as it is if its shape does not fit.

    Args:
        cuts: whether one may have several axes for axes of the other. A model's outputs may not: their shape counts.
    """
    got = np.asarray(got)
    if cuts and expected is not None and cut(got.shape, expected.shape):
        return got.reshape(expected.shape)
    layout = layout_of(got, expected) if expected is not None else None
    return to_reference(got, layout) if layout else got


def broadcast(got: np.ndarray, expected: np.ndarray | None) -> np.ndarray:
    """A layer's output, repeated or taken once, if PyTorch's is the same for the whole batch, or for one example.

    A table of positions is (length, width) in one model and (batch, length, width) in the other.
    """
    if expected is None or got.shape == expected.shape:
        return got
    with suppress(ValueError):
        both = np.broadcast_shapes(got.shape, expected.shape)
        if both == expected.shape:
            return np.broadcast_to(got, expected.shape)
        if both == got.shape:
            lengths = (1,) * (got.ndim - expected.ndim) + expected.shape
            once = got[tuple(slice(0, n) for n in lengths)]
            if np.array_equal(np.broadcast_to(once, got.shape), got):
                return once.reshape(expected.shape)
    return got


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The arrays of a nested value in order: `output`, or `output.0`, `output.key`; other values are left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from leaves(part, f"{name}.{i}" if len(value) > 1 else name)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        yield name, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from leaves(fields(value), name)


def fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def named(arrays: Mapping[str, Any], name: str = "output") -> Any:
    """Return nested dicts whose `leaves` have these names; a single array if it has the name itself."""
    if name in arrays:
        return arrays[name]
    found: dict[str, Any] = {}
    for path, array in arrays.items():
        *outer, last = path.removeprefix(f"{name}.").split(".")
        node = found
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = array
    return found


def counterparts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Return which of our outputs each of theirs is: the one with the same name, or the next one that is left.

    Args:
        theirs, ours: arrays, or their shapes, by name.
    """
    found = {name: name for name in theirs if name in ours}
    left = [name for name in ours if name not in found]
    for name, array in theirs.items():
        fitting = (other for other in left if np.prod(ours[other].shape) == np.prod(array.shape))
        if name not in found and (other := next(fitting, None)) is not None:
            found[name] = other
            left.remove(other)
    return found


def mapped(value: Any, change: Callable[[str, Any], Any], name: str = "input") -> Any:
    """The same nested value with `change(name, array)` for every array."""
    if isinstance(value, Mapping):
        return {key: mapped(part, change, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(mapped(part, change, f"{name}.{i}" if len(value) > 1 else name) for i, part in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return mapped(fields(value), change, name)
    return change(name, value) if hasattr(value, "shape") and hasattr(value, "dtype") else value


def rebuilt(value: Any, change: Callable[[str, Any], Any], name: str = "output") -> Any:
    """Return the nested value with `change(name, array)` for every array, in containers of the same kinds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "shape"):
        held = value if isinstance(value, Mapping) else fields(value)
        parts = {key: rebuilt(part, change, f"{name}.{key}") for key, part in held.items()}
        return dataclasses.replace(value, **parts)
    if isinstance(value, Mapping):
        parts = {key: rebuilt(part, change, f"{name}.{key}") for key, part in value.items()}
        return type(value)(parts)  # pyright: ignore[reportCallIssue]
    if isinstance(value, list | tuple):
        new = [rebuilt(part, change, f"{name}.{i}" if len(value) > 1 else name) for i, part in enumerate(value)]
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    return change(name, value) if hasattr(value, "shape") and hasattr(value, "dtype") else value


def first(value: Any) -> Any:
    """Return the first array of a nested value: a layer that gives several arrays is judged by it.

    JAX sorts the keys of a dict and PyTorch keeps their order, so the first array is the one of the first sorted key.
    """
    if isinstance(value, Mapping):
        parts = (value[key] for key in sorted(value, key=str))
    elif isinstance(value, list | tuple):
        parts = iter(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "shape"):
        parts = iter(fields(value).values())
    else:
        return value if hasattr(value, "shape") and hasattr(value, "dtype") else None
    return next((array for part in parts if (array := first(part)) is not None), None)


def with_first(value: Any, new: Any) -> Any:
    """Return the nested value with its `first` array replaced."""
    if isinstance(value, Mapping):
        items = dict(value)
        for key in sorted(items, key=str):
            part = items[key]
            if first(part) is not None:
                return type(value)({**items, key: with_first(part, new)})  # pyright: ignore[reportCallIssue]
    if isinstance(value, list | tuple):
        parts = list(value)
        for i, part in enumerate(parts):
            if first(part) is not None:
                parts[i] = with_first(part, new)
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "shape"):
        name, part = next((n, p) for n, p in fields(value).items() if first(p) is not None)
        return dataclasses.replace(value, **{name: with_first(part, new)})
    return new
