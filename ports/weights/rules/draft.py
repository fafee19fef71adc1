"""A first draft of rules from one file to another (`parity inspect --rules A B`), to be edited.

Layers are paired by equal names, then by shapes that one layer alone has, then by order among equal shapes; what rests
on order says so, and what has no counterpart stands in a comment.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ports.errors import printable
from ports.family import Shape
from ports.frameworks import PORTS
from ports.weights.known.names import in_flax, normal
from ports.weights.layers.kinds import KINDS, LayerKind
from ports.weights.layers.leaves import Leaf

Options = dict[str, object]


@dataclass
class DraftLayer:
    """A layer as the names and shapes of its tensors show it.

    Attributes:
        types: the rows of `KINDS` that its tensors fit: PyTorch's names do not tell a linear layer from an embedding.
        shape: of its first tensor in PyTorch.
        options: what its shapes tell of its settings.
    """

    name: str
    types: tuple[str, ...]
    shape: Shape
    options: Options = field(default_factory=dict)

    @property
    def type(self) -> str:
        return self.types[0]

    @property
    def plain(self) -> str:
        return re.sub(r"[._]|layers", "", self.name).lower()


def draft(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> str:
    """The text of a file of rules."""
    (source, mine), (target, theirs) = _layers(left), _layers(right)
    pairs: list[tuple[DraftLayer, DraftLayer, str]] = []
    for test in (lambda layer: layer.plain, lambda layer: (layer.type, layer.shape)):
        groups: dict[object, tuple[list[DraftLayer], list[DraftLayer]]] = defaultdict(lambda: ([], []))
        for side, layers in enumerate((mine, theirs)):
            for layer in layers:
                groups[test(layer)][side].append(layer)
        for ours, others in groups.values():
            if len(ours) == len(others) == 1 and (common := _common(ours[0], others[0])):
                ours[0].types = common
                pairs.append((ours[0], others[0], ""))
        mine, theirs = _left(mine, theirs, pairs)
    groups = defaultdict(lambda: ([], []))
    for side, layers in enumerate((mine, theirs)):
        for layer in layers:
            groups[(layer.type, layer.shape)][side].append(layer)
    for ours, others in groups.values():
        if len(ours) == len(others):
            pairs += [(a, b, "by order among equal shapes") for a, b in zip(ours, others, strict=True)]
    mine, theirs = _left(mine, theirs, pairs)
    lines = [f'source = "{source}"', f'target = "{target}"']
    options = {(layer.type, *option) for pair in pairs for layer in pair[:2] for option in layer.options.items()}
    for (a, b, kind), why in _collapsed(pairs).items():
        lines += [
            "",
            "[[layer]]" + (f"  # check: {why}" if why else ""),
            f"source = {_quoted(a)}",
            f"target = {_quoted(b)}",
            f'type = "{kind}"',
            *(f"{name} = {value}" for of, name, value in sorted(options, key=str) if of == kind),
        ]
    for side, layers in (("source", mine), ("target", theirs)):
        lines += (
            ["", *(f"# {side} {printable(x.name)} {x.shape} ({x.type}): no counterpart found" for x in layers)]
            if layers
            else []
        )
    return "\n".join(lines) + "\n"


def _common(left: DraftLayer, right: DraftLayer) -> tuple[str, ...]:
    """Return the rows that both layers fit; of one shape, or they are two layers."""
    return tuple(one for one in left.types if one in right.types) if left.shape == right.shape else ()


def _quoted(name: str) -> str:
    """A string of TOML: other characters than those that can be seen are written by their numbers."""
    signs = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(signs.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in name) + '"'


def _left(mine: list[DraftLayer], theirs: list[DraftLayer], pairs: list) -> tuple[list[DraftLayer], list[DraftLayer]]:
    ours, others = {id(a) for a, _, _ in pairs}, {id(b) for _, b, _ in pairs}
    return [x for x in mine if id(x) not in ours], [x for x in theirs if id(x) not in others]


def _layers(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[DraftLayer]]:
    """The side's style, and its layers; shapes are PyTorch's."""
    names = {n: tensors[raw].shape for n, raw in normal({n: a.shape for n, a in tensors.items()}).items()}
    style, collections = _style(names)
    bare = {name.partition(".")[2] if collections else name: shape for name, shape in names.items()}
    found = [layer for name in bare for row in _NESTED if (layer := _nested(name, bare, row, style)) is not None]
    taken = {layer.name for layer in found}
    lengths = {len(name) for name in taken}
    grouped: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in bare.items():
        layer, _, leaf = name.rpartition(".")
        if not any(name[at : at + 1] == "." and name[:at] in taken for at in lengths):
            grouped[layer or name][leaf if layer else ""] = shape
    return style, found + [layer for name, leaves in grouped.items() for layer in _typed(name, leaves, style)]


def _style(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Whose names they are, and the collections that all of them begin with."""
    flax = in_flax(names)
    for port in PORTS.values():
        begins = tuple(f"{collection}." for collection in port.collections)
        if port.is_flax == flax and begins and all(name.startswith(begins) for name in names):
            return port.layout, port.collections
    plain = next(port for port in PORTS.values() if port.is_flax == flax and not port.collections)
    return plain.layout, ()


@cache
def _ends(row: LayerKind, style: str) -> tuple[str, ...]:
    """The names of a layer's tensors within it; the first is one that every such layer has."""
    leaves = sorted(row.leaves_for(_ANY), key=lambda leaf: leaf.torch != row.needs[0])
    return tuple(name for leaf in leaves for name in _names(leaf, style))


def _names(leaf: Leaf, style: str) -> tuple[str, ...]:
    return (leaf.torch,) if style == "torch" else leaf.flax


# Any settings will do where only the names of a layer's tensors are asked for.
_ANY = {option.name: 1 for row in KINDS.values() for option in row.options or ()}
# The rows with tensors in modules within the layer, and those without, which a draft tries in this order.
_NESTED = [row for row in KINDS.values() if any("." in name for name in row.needs)]
_PLAIN = [row for row in KINDS.values() if row.ranks and row not in _NESTED]


def _nested(name: str, tensors: Mapping[str, Shape], row: LayerKind, style: str) -> DraftLayer | None:
    """Return the layer whose first tensor has this name."""
    first, *rest = _ends(row, style)
    base = name.removesuffix(f".{first}")
    if base == name:
        return None
    leaves = {end: tensors[at] for end in (first, *rest) if (at := f"{base}.{end}") in tensors}
    options = _options(row, leaves)
    shape = _first_shape(row, leaves, style, options)
    return None if shape is None else DraftLayer(base, (row.name,), shape, options)


def _typed(name: str, leaves: dict[str, Shape], style: str) -> list[DraftLayer]:
    """The layer that tensors side by side belong to; each of them alone where no row has them all."""
    fitting: list[tuple[str, Shape]] = []
    for row in _PLAIN:
        if leaves.keys() <= set(_ends(row, style)) and (shape := _first_shape(row, leaves, style, {})) is not None:
            fitting.append((row.name, shape))
    if fitting:
        shape = fitting[0][1]
        return [DraftLayer(name, tuple(kind for kind, other in fitting if other == shape), shape)]
    return [DraftLayer(f"{name}.{leaf}" if leaf else name, ("tensor",), shape) for leaf, shape in leaves.items()]


def _options(row: LayerKind, leaves: Mapping[str, Shape]) -> Options:
    """Return the settings that the shapes of Flax's tensors tell."""
    told = [option for option in row.options or () if len(leaves.get(option.tensor, ())) > option.axis]
    return {option.name: leaves[option.tensor][option.axis] for option in told}


def _first_shape(row: LayerKind, leaves: Mapping[str, Shape], style: str, options: Options) -> Shape | None:
    """Return PyTorch's shape of the first tensor that such a layer has; None where the tensors are not of such one."""
    rules = {leaf.torch: leaf for leaf in row.leaves_for(_ANY | options)}
    if not all(name in leaves for need in row.needs for name in _names(rules[need], style)):
        return None
    first = rules[row.needs[0]]
    given = [leaves[name] for name in _names(first, style)]
    shape = given[0]
    if style != "torch":
        try:
            shape = first.to_torch(tuple(_blank(one) for one in given)).shape
            back = [array.shape for array in first.to_flax(_blank(shape))]
        except (ValueError, IndexError):
            return None
        if back != given:
            return None
    return shape if len(shape) in row.ranks else None


def _blank(shape: Shape) -> np.ndarray:
    return np.broadcast_to(np.int8(0), shape)


def _collapsed(pairs: list[tuple[DraftLayer, DraftLayer, str]]) -> dict[tuple[str, str, str], str]:
    """Rows; those that differ in numbers alone are one, where the numbers of both sides are the same."""
    rows: dict[tuple[str, str, str], str] = {}
    for a, b, why in pairs:
        parts = [[p for p in x.name.split(".") if p.isdigit()] for x in (a, b)]
        key = (a.name, b.name, a.type)
        if parts[0] and parts[0] == parts[1]:
            key = (*(".".join("{}" if p.isdigit() else p for p in x.name.split(".")) for x in (a, b)), a.type)
        rows[key] = rows.get(key) or why  # pyright: ignore[reportArgumentType]
    return rows
