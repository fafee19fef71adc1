"""The rearrangement behind numbers that moved, read off where each of them stands.

Each array is a grid: the place of a number in the other array is a sum of one step for each axis, and the steps of an
axis count like the digits of a clock. The digits say how the axes are cut, and their strides say in which order. So
nothing is searched, and any sequence of the steps of a rearrangement is found, whoever made it: a pairing, a layer's
rule, a stack of layers, or one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ports.weights.form.rearrangement import Gathering, Layout, Rearrangement

Digit = tuple[int, int]  # how many numbers it counts, and how far apart they are
Grid = list[list[Digit]]  # the digits of each axis, the slowest first


def traced(tensors: Sequence[np.ndarray], variables: Sequence[np.ndarray]) -> Rearrangement | None:
    """Return the rearrangement that makes the variables of the tensors; None where there is none.

    Args:
        tensors: each counts row by row, from a start of its own.
        variables: the same numbers in other places.
    """
    if not tensors or not variables:
        return None
    # Numbers from 0 on in place of the given ones: then a table says at once where each of them stands.
    sizes = np.array([tensor.size for tensor in tensors])
    ends = np.cumsum(sizes)
    counted = [np.arange(end - x.size, end).reshape(x.shape) for end, x in zip(ends, tensors, strict=True)]
    starts = np.array([tensor.reshape(-1)[0] if tensor.size else np.inf for tensor in tensors])
    renumbered = [_renumbered(variable, starts, sizes, ends - sizes) for variable in variables]
    for gathering, spreading, one, target in _gathered_both(counted, renumbered):
        if (layout := between(one, target)) is not None:
            return Rearrangement(layout, gathering, spreading)
    return None


def _renumbered(array: np.ndarray, starts: np.ndarray, sizes: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return an array whose numbers count from new starts; -1 for those that no tensor has."""
    order = np.argsort(starts)
    tensor = order[np.searchsorted(starts, array, "right", order) - 1]
    after = array - starts[tensor]
    inside = (after >= 0) & (after < sizes[tensor])
    return np.where(inside, after + new[tensor], -1).astype(np.int64)


def between(old: np.ndarray, new: np.ndarray) -> Layout | None:
    """Return the layout that takes an array of different counts to another array; None where there is none."""
    if old.size != new.size:
        return None
    plain = Layout(old.shape, tuple(range(old.ndim)), new.shape, old.shape)
    if np.array_equal(old.reshape(-1), new.reshape(-1)):
        return plain
    grid = _grid(_places([new], old)[0])
    if grid is None:
        return None
    flip = tuple(axis for axis, digits in enumerate(grid) if any(stride < 0 for _, stride in digits))
    digits = [(size, abs(stride)) for own in grid for size, stride in own]
    order = sorted(range(len(digits)), key=lambda i: -digits[i][1])
    fine, moved = tuple(digits[i][0] for i in order), tuple(order.index(i) for i in range(len(digits)))
    if math.prod(fine) != old.size:
        return None
    cut = replace(plain, flip=flip) if order == sorted(order) else Layout(fine, moved, new.shape, old.shape, flip)
    return cut if np.array_equal(cut.apply(old), new) else None


def _gathered_both(
    tensors: Sequence[np.ndarray], variables: Sequence[np.ndarray]
) -> Iterator[tuple[Gathering | None, Gathering | None, np.ndarray, np.ndarray]]:
    """Yield the ways to make one array of each side: as the arrays are, then with some brought into another layout."""
    for spreading, target in _gathered(variables, tensors):
        for gathering, one in _gathered(tensors, [target]):
            yield gathering, spreading, one, target
    for gathering, one in _gathered(tensors, variables):
        for spreading, target in _parts(variables, one):
            yield gathering, spreading, one, target
    for spreading, target in _gathered(variables, tensors):
        for gathering, one in _parts(tensors, target):
            yield gathering, spreading, one, target


def _gathered(
    arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]
) -> Iterator[tuple[Gathering | None, np.ndarray]]:
    """Yield the ways to make one array of several: in their order, or in the order in which the others have them."""
    if len(arrays) == 1:
        yield None, arrays[0]
        return
    for order in dict.fromkeys((tuple(range(len(arrays))), _by_place(_places(arrays, *others)))):
        if len({array.shape for array in arrays}) == 1:
            stacked = Gathering((1,) * len(arrays), True, order)
            yield stacked, stacked.together(tuple(arrays))
        elif len({array.shape[1:] for array in arrays}) == 1 and arrays[0].ndim:
            joined = Gathering(tuple(len(array) for array in arrays), False, order)
            yield joined, joined.together(tuple(arrays))


def _parts(arrays: Sequence[np.ndarray], one: np.ndarray) -> Iterator[tuple[Gathering, np.ndarray]]:
    """Yield how several arrays make one, once each has its numbers in the order of another array, which holds all.

    The axis along which their sizes differ comes first: the queries of a projection are wider than its keys.
    """
    places = _places(arrays, one)
    grids = [_grid(at) for at in places]
    boxes = [_merged(grid) for grid in grids if grid is not None]
    if len(arrays) < 2 or len(boxes) < len(arrays) or len({tuple(stride for _, stride in box) for box in boxes}) > 1:
        return
    axes = [axis for axis, sizes in enumerate(zip(*boxes, strict=True)) if len({*sizes}) > 1] or [0]
    if len(axes) > 1 or not boxes[0]:
        return
    layouts = []
    for array, at, box in zip(arrays, places, boxes, strict=True):
        box.insert(0, box.pop(axes[0]))
        steps = np.ix_(*(stride * np.arange(size) for size, stride in box))
        layouts.append(between(array, one.reshape(-1)[sum(steps, at.min())]))
    if all(layout is not None for layout in layouts):
        sizes = tuple(layout.shape[0] for layout in layouts)
        joined = Gathering(sizes, False, _by_place(places), tuple(layouts))
        yield joined, joined.together(tuple(arrays))


def _places(arrays: Sequence[np.ndarray], *others: np.ndarray) -> list[np.ndarray]:
    """Return where the counts of arrays stand in others, which are read row by row; -1 for those that are not there."""
    whole = np.concatenate([other.reshape(-1) for other in others])
    most = max((int(array.max(initial=-1)) for array in (whole, *arrays)), default=-1)
    at = np.full(most + 2, -1)  # the last one is that of -1
    at[whole] = np.arange(whole.size)
    at[-1] = -1
    return [at[array] for array in arrays]


def _by_place(places: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the order of arrays in which their first numbers stand."""
    return tuple(sorted(range(len(places)), key=lambda i: int(places[i].min()) if places[i].size else -1))


def _grid(places: np.ndarray) -> Grid | None:
    """Return the digits of each axis, the slowest first, as the first line along it has them; None where it has none.

    Whether all other lines have them too, the layout that comes of them shows.
    """
    if not places.size:
        return [[] for _ in places.shape]
    lines = (places[(0,) * axis + (slice(None),) + (0,) * (places.ndim - axis - 1)] for axis in range(places.ndim))
    axes = [digits for line in lines if (digits := _digits(line - line[0])) is not None]
    return axes if len(axes) == places.ndim else None


def _digits(steps: np.ndarray) -> list[Digit] | None:
    """Return the digits that count along an axis, the slowest first; None where the steps do not repeat."""
    if len(steps) == 1:
        return []
    stride = int(steps[1])
    (breaks,) = np.nonzero(steps != stride * np.arange(len(steps)))
    size = int(breaks[0]) if breaks.size else len(steps)
    if size < 2 or len(steps) % size:
        return None
    outer = steps[::size]
    if not np.array_equal(steps, np.add.outer(outer, stride * np.arange(size)).reshape(-1)):
        return None
    slower = _digits(outer)
    return None if slower is None else [*slower, (size, stride)]


def _merged(grid: Grid) -> list[Digit]:
    """Return the digits of all axes, the slowest first, with those that follow one another as one."""
    found: list[Digit] = []
    for size, stride in sorted(((n, abs(stride)) for own in grid for n, stride in own), key=lambda one: -one[1]):
        if found and found[-1][1] == size * stride:
            size, stride = size * found.pop()[0], stride
        found.append((size, stride))
    return found
