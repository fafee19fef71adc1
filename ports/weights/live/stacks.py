"""Find layers that a Flax model keeps as one layer with an axis more: those of `nn.scan`, `nnx.scan` and `nnx.vmap`.

A layer type says how many axes its variables have (`Leaf.axes`). Variables with more axes belong to a stack. The stack
begins at the outermost module whose variables all have an axis of the same length in the same place: a block of a
decoder, with all layers in it. The layers of a stack get names with their number behind that module:
`layers.fc1` of three blocks is `layers.0.fc1`, `layers.1.fc1`, `layers.2.fc1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Path = tuple[str, ...]
Shape = tuple[int, ...]

# Where the axis of a stack may be: in front, or behind the first axis (`variable_axes={"params": 1}`).
AXES = (0, 1)


@dataclass(frozen=True)
class Held:
    """One variable, as the search for stacks sees it.

    Attributes:
        module: the path of its module.
        shape: as it is stored.
        axes: how many axes it has in one layer; None where its module has no rule.
    """

    module: Path
    shape: Shape
    axes: int | None


@dataclass(frozen=True)
class Level:
    """One axis of a stack.

    Attributes:
        depth: how many parts of the module's path stand before the number.
        axis: of the variable, once the axes of the levels before are gone.
        length: how many layers.
    """

    depth: int
    axis: int
    length: int


def levels(variables: Sequence[Held]) -> list[tuple[Level, ...]]:
    """Return for each variable the stacks that it stands in, the outermost first; none for most."""
    found: list[list[Level]] = [[] for _ in variables]
    shapes = [held.shape for held in variables]
    while _one_level(variables, shapes, found):
        pass
    return [tuple(each) for each in found]


def _one_level(variables: Sequence[Held], shapes: list[Shape], found: list[list[Level]]) -> bool:
    """Take one axis off each variable of a stack; return whether there was one."""
    excess = {i for i, held in enumerate(variables) if held.axes is not None and len(shapes[i]) > held.axes}
    if not excess:
        return False
    taken: set[int] = set()
    for depth in range(max(len(variables[i].module) for i in excess) + 1):
        groups: dict[Path, list[int]] = {}
        for i, held in enumerate(variables):
            if i not in taken and len(held.module) >= depth:
                groups.setdefault(held.module[:depth], []).append(i)
        for group in groups.values():
            if not excess.intersection(group):
                continue
            inside: dict[Path, list[Shape]] = {}
            for i in group:
                inside.setdefault(variables[i].module, []).append(shapes[i])
            level = None
            if all(i in excess or variables[i].axes is None for i in group):
                level = _level(depth, [*inside.values()])
            if level is not None:
                for i in group:
                    found[i].append(level)
                    shapes[i] = shapes[i][: level.axis] + shapes[i][level.axis + 1 :]
                taken.update(group)
    return bool(taken)


def _level(depth: int, modules: Sequence[Sequence[Shape]]) -> Level | None:
    """Return the axis that all variables of some modules have in common; None where there is none.

    An axis behind the first is meant only where in some module the first axes differ: in two stacks of other lengths
    the axes behind them are the widths.
    """
    for axis in AXES:
        lengths = {shape[axis] if len(shape) > axis else 0 for shapes in modules for shape in shapes}
        if len(lengths) == 1 and (length := lengths.pop()):
            return Level(depth, axis, length)
        if all(len({shape[:1] for shape in shapes}) == 1 for shapes in modules):
            return None
    return None


def copies(module: Path, stack: Sequence[Level]) -> Iterator[tuple[Path, tuple[tuple[int, int], ...], int]]:
    """Yield for each layer of a stack its path, the (axis, index) pairs that take it out, and its number."""
    for number, indices in enumerate(product(*(range(level.length) for level in stack))):
        path = module
        # From the innermost on: a number that is put in moves what stands behind it.
        for level, i in sorted(zip(stack, indices, strict=True), key=lambda pair: pair[0].depth, reverse=True):
            path = (*path[: level.depth], str(i), *path[level.depth :])
        yield path, tuple((level.axis, i) for level, i in zip(stack, indices, strict=True)), number
