"""Find layers that a Flax model keeps as one layer with an additional axis: those of `nn.scan`, `nnx.scan`, `nnx.vmap`.

A layer type says how many axes its variables have (`Leaf.axes`). Variables with more axes belong to a stack. The stack
begins at the outermost module whose variables all have an axis of the same length in the same place: a block of a
decoder, with all layers in it. The layers of a stack get names with their number after that module: `layers.fc1` of
three blocks is `layers.0.fc1`, `layers.1.fc1`, `layers.2.fc1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Path = tuple[str, ...]
Shape = tuple[int, ...]

# Where the axis of a stack may be: before or after the first axis (`variable_axes={"params": 1}`).
AXES = (0, 1)


@dataclass(frozen=True)
class Held:
    """One variable, as the search for stacks sees it.

    Attributes:
        module: the path of its module.
        shape: as it is stored.
        axes: how many axes it has in one layer; None if its module has no rule.
    """

    module: Path
    shape: Shape
    axes: int | None


@dataclass(frozen=True)
class Level:
    """One axis of a stack.

    Attributes:
        depth: how many parts of the module's path precede the number.
        axis: of the variable, after the axes of earlier levels are removed.
        length: how many layers.
    """

    depth: int
    axis: int
    length: int


def levels(variables: Sequence[Held]) -> list[tuple[Level, ...]]:
    """Return the stacks that contain each variable, the outermost first; most variables are in none."""
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
    """Return the axis that all variables of some modules have in common; None if there is none.

    A later axis counts only if the first axes differ within a module: in two stacks of different lengths, the axes
    after the first are the widths.
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
        # Begin with the innermost: inserting a number moves the parts after it.
        for level, i in sorted(zip(stack, indices, strict=True), key=lambda pair: pair[0].depth, reverse=True):
            path = (*path[: level.depth], str(i), *path[level.depth :])
        yield path, tuple((level.axis, i) for level, i in zip(stack, indices, strict=True)), number
