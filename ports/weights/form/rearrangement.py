"""Rearrangements: how PyTorch's tensors and Flax's variables hold the same numbers in another order.

One rearrangement takes one or several tensors to one or several variables and back. It consists of steps out of a
closed set, each of which can be undone: stack or concatenate, reshape, transpose, flip, split or unstack. No number is
ever computed, so that both directions give every bit back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

Shape = tuple[int, ...]
Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Layout:
    """The order of the numbers of one array: cut its axes into parts, order the parts, join them.

    Attributes:
        fine: the shape with its axes cut.
        order: of the cut axes.
        shape: the new shape.
        old: the shape before.
        flip: the new axes that run backwards.
    """

    fine: Shape
    order: tuple[int, ...]
    shape: Shape
    old: Shape
    flip: tuple[int, ...] = ()

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return the array in the new order: a view where possible."""
        new = np.asarray(array).reshape(self.fine).transpose(self.order).reshape(self.shape)
        return np.flip(new, self.flip) if self.flip else new

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return the array in the old order."""
        back = np.argsort(self.order)
        array = np.flip(array, self.flip) if self.flip else np.asarray(array)
        return array.reshape([self.fine[i] for i in self.order]).transpose(back).reshape(self.old)

    @property
    def back(self) -> Layout:
        """The layout of the way back, where no axis is flipped."""
        fine = tuple(self.fine[i] for i in self.order)
        return Layout(fine, tuple(int(i) for i in np.argsort(self.order)), self.old, self.shape)

    @property
    def plain(self) -> bool:
        """Whether the numbers stay in their order."""
        moved = [i for i in self.order if self.fine[i] != 1]
        return moved == sorted(moved)

    def __str__(self) -> str:
        if self.plain:
            return "same" if self.shape == self.old else f"reshape {self.shape}"
        if self.fine == self.old and len(self.fine) == 2:
            return "transpose" if self.shape == self.old[::-1] else f"transpose, reshape {self.shape}"
        parts = f"reshape {self.fine}, " if self.fine != self.old else ""
        joined = tuple(self.fine[i] for i in self.order)
        return f"{parts}transpose {self.order}" + (f", reshape {self.shape}" if joined != self.shape else "")


@dataclass(frozen=True)
class Gathering:
    """How several arrays make one: side by side along their first axis, or along a new first axis.

    Attributes:
        sizes: of the arrays along the axis; for new axes 1 each.
        stacked: whether the axis is new.
        order: the place of each array among them.
        layouts: what each array goes through before; empty where all stay as they are.
    """

    sizes: Shape
    stacked: bool
    order: tuple[int, ...]
    layouts: tuple[Layout, ...] = ()

    def together(self, arrays: Arrays) -> np.ndarray:
        """Return the one array."""
        if self.layouts:
            arrays = tuple(layout.apply(array) for layout, array in zip(self.layouts, arrays, strict=True))
        inside = [arrays[i] for i in self.order]
        return np.stack(inside) if self.stacked else np.concatenate(inside)

    def apart(self, array: np.ndarray) -> Arrays:
        """Return the arrays that make this one."""
        sizes = [self.sizes[i] for i in self.order]
        inside = list(array) if self.stacked else np.split(array, np.cumsum(sizes)[:-1])
        parts = tuple(inside[self.order.index(i)] for i in range(len(inside)))
        return tuple(x.undo(part) for x, part in zip(self.layouts, parts, strict=True)) if self.layouts else parts

    def __str__(self) -> str:
        what = "stack" if self.stacked else "concatenate"
        return what if [*self.order] == sorted(self.order) else f"{what} in the order {[*self.order]}"


@dataclass(frozen=True)
class Rearrangement:
    """From PyTorch's tensors to Flax's variables, and back.

    Attributes:
        gathering: how to join PyTorch's tensors, if there are several.
        layout: of the joined array.
        spreading: how to divide it into Flax's variables, if there are several.
    """

    layout: Layout
    gathering: Gathering | None = None
    spreading: Gathering | None = None

    def to_flax(self, tensors: Arrays) -> Arrays:
        """Return the values of Flax's variables."""
        return self.spread(self.joined(tensors))

    def to_torch(self, variables: Arrays) -> Arrays:
        """Return PyTorch's tensors."""
        return self.parted(self.collected(variables))

    def joined(self, tensors: Arrays) -> np.ndarray:
        """Return PyTorch's tensors as one array in Flax's layout."""
        return self.layout.apply(tensors[0] if self.gathering is None else self.gathering.together(tensors))

    def parted(self, one: np.ndarray) -> Arrays:
        """Return PyTorch's tensors of the one array."""
        old = self.layout.undo(one)
        return (old,) if self.gathering is None else self.gathering.apart(old)

    def spread(self, one: np.ndarray) -> Arrays:
        """Return Flax's variables of the one array."""
        return (one,) if self.spreading is None else self.spreading.apart(one)

    def collected(self, variables: Arrays) -> np.ndarray:
        """Return Flax's variables as one array."""
        return variables[0] if self.spreading is None else self.spreading.together(variables)

    @property
    def woven(self) -> bool:
        """Whether single arrays change their layout, too: every head has its part of each."""
        return any(how is not None and how.layouts for how in (self.gathering, self.spreading))

    @property
    def order(self) -> tuple[int, ...]:
        """The order of several tensors or variables."""
        return next((g.order for g in (self.gathering, self.spreading) if g is not None), ())

    def __str__(self) -> str:
        spread = "" if self.spreading is None else str(self.spreading).replace("concatenate", "split")
        steps = (str(self.gathering or ""), str(self.layout), spread.replace("stack", "unstack"))
        return ", ".join(step for step in steps if step not in ("", "same")) or "same"


@lru_cache(1024)
def layouts(old: Shape, new: Shape, most: int = 24) -> tuple[Layout, ...]:
    """Return the ways to bring an array of one shape into another by cutting, ordering and joining its axes.

    Only one of the shapes may have finer axes: (width, width) and (width, heads, depth).
    """
    found: list[Layout] = []
    for layout in (*_finer(old, new), *(turned.back for turned in _finer(new, old))):
        if not any(_same(layout, other) for other in found):
            found.append(layout)
        if len(found) == most:
            break
    return tuple(found)


def _same(a: Layout, b: Layout) -> bool:
    """Whether two layouts put every number in the same place."""
    count = math.prod(a.old)
    marks = np.arange(count).reshape(a.old) if count <= 4096 else None
    if marks is None:
        return _plainly(a) == _plainly(b)
    return bool(np.array_equal(a.apply(marks), b.apply(marks)))


def _plainly(layout: Layout) -> tuple[Shape, tuple[int, ...]]:
    """Return the cut axes and their order, without axes of length 1."""
    kept = [i for i, n in enumerate(layout.fine) if n != 1]
    return tuple(layout.fine[i] for i in kept), tuple(kept.index(i) for i in layout.order if i in kept)


def _finer(old: Shape, new: Shape) -> Iterator[Layout]:
    """Yield the layouts in which each axis of the new shape comes from one axis of the old one."""
    if math.prod(old) != math.prod(new):
        return
    wide = [i for i, n in enumerate(new) if n != 1]
    for groups in _assigned(tuple(n for n in old if n != 1), wide, new):
        for orders in _orders(groups):
            axes = [i for group in orders for i in group]
            fine = tuple(new[i] for i in axes)
            yield Layout(fine, tuple(axes.index(i) for i in wide), new, old)


def _assigned(old: Shape, axes: Sequence[int], new: Shape) -> Iterator[list[list[int]]]:
    """Yield the ways to divide the new axes among the old ones so that the lengths fit."""
    if not old:
        if not axes:
            yield []
        return
    for chosen in _products(old[0], axes, new):
        rest = [i for i in axes if i not in chosen]
        for others in _assigned(old[1:], rest, new):
            yield [chosen, *others]


def _products(length: int, axes: Sequence[int], new: Shape) -> Iterator[list[int]]:
    """Yield the choices of axes, in their order, whose lengths multiply to `length`."""
    if length == 1:
        yield []
        return
    for at, i in enumerate(axes):
        if length % new[i] == 0:
            for others in _products(length // new[i], axes[at + 1 :], new):
                yield [i, *others]


def _orders(groups: list[list[int]]) -> Iterator[list[list[int]]]:
    """Yield the groups with their axes in each order, first in the order of the new shape."""
    if not groups:
        yield []
        return
    for rest in _orders(groups[1:]):
        for own in permutations(groups[0]):
            yield [list(own), *rest]
