"""Which layer of somebody's Flax model is which layer of their PyTorch model.

Layers are paired by what is certain, in this order; what stays open is an error that lists the
candidates, never a guess:

1. `names`, given by the caller, layer by layer or as patterns;
2. equal names (but for `.`, `_` and capitals), where the tensors fit; a number tells nothing where both models have as
   many layers of such names under other numbers (fc1 and fc2, fc0 and fc1; the 0, 2, 4 of a Sequential, 0, 1, 2);
3. equal values: the same weights, bit by bit, that no other layer has;
4. the only two layers left with tensors of these shapes;
5. the order of execution, where both models call layers of the same types and shapes in the same order;
6. names that differ in such numbers alone, the first with the first.

The last two say what a layer computes, not where it is written; `parity.ordering` checks them by computing before
weights are moved.

A parameter that a module of the user's own has is a layer of its own. When it is used is not seen: where both models
have it under the same name in its module, it is paired with one of that name; two of a module that only their order
tells apart are never paired.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from ports.errors import UserError
from ports.weights.layers.leaves import COUNTER

# Tensors that one side may lack: the counter of batches; a recurrent layer's second bias, folded into the first.
SECOND = "bias_hh"
OPTIONAL = (COUNTER, SECOND)

NAMES, VALUES = "equal names", "equal values"
NUMBERED, ORDER, ONLY = "equal names but for numbers", "the order of calls", "the only ones of these shapes"


@dataclass
class Layer:
    """A layer with tensors of its own.

    Attributes:
        name: in its own framework.
        kind: its group in `ports.weights.layers.kinds`: `conv`, `linear`; `own` for a module of the user's.
        tensors: by its name within the layer (`weight`), the name of each tensor in the whole model.
        values: by the same names, in PyTorch's layout.
        rank: when it is called first; None where it is never called.
        owner: of a module's own parameter: the module, or the one around it, that is called.
        leaf: its name within the owner.
        owner_rank: when the owner is called first.
        mark: its name within the owner, where the other model has it as often.
        key: its name, where names can tell it: None where its numbers tell nothing.
        numbered: its name with each number counted among those in its place.
    """

    name: str
    kind: str
    tensors: dict[str, str] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    rank: int | None = None
    owner: str = ""
    leaf: str = ""
    owner_rank: int = 0
    mark: str = ""
    key: str | None = None
    numbered: str = ""

    @property
    def signature(self) -> tuple[object, ...]:
        """Type, and names and shapes of the tensors."""
        return self.kind, self.mark, *sorted((n, v.shape) for n, v in self.values.items() if n not in OPTIONAL)

    @property
    def normal(self) -> str:
        return _normal(self.name)

    def __str__(self) -> str:
        shapes = ", ".join(f"{n} {v.shape}" for n, v in self.values.items() if n not in OPTIONAL)
        return f"{self.name} ({self.kind}: {shapes})"


@dataclass(frozen=True)
class Pair:
    """Two layers that are one.

    Attributes:
        why: what the pairing rests on.
    """

    torch: Layer
    flax: Layer
    why: str

    def __str__(self) -> str:
        return f"{self.torch.name} = {self.flax.name}  ({self.why})"


@dataclass(frozen=True)
class Pairing:
    """All pairs in PyTorch's order, and PyTorch's layers that need none."""

    pairs: tuple[Pair, ...]
    unused: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        lines = [str(pair) for pair in self.pairs]
        lines += [f"{layer.name}: never called in PyTorch, and absent from Flax" for layer in self.unused]
        return "\n".join(lines)


def pair(
    torch: Sequence[Layer], flax: Sequence[Layer], names: Mapping[str, str] | None = None, port: str = "Flax"
) -> Pairing:
    """Pairs the layers of two models.

    Args:
        names: Flax's names by PyTorch's; of a layer, or of a module with layers in it; each `*` stands for one part of
            a name and is put in again: `{"encoder.layers.*.linear1": "Block_*.Dense_0"}`.

    Raises:
        UserError: a name that is not there, or layers that stay open, with their candidates.
    """
    found: list[Pair] = []
    left, right = _unique(torch, "PyTorch"), _unique(flax, port)
    for pattern, replacement in (names or {}).items():
        _named(pattern, replacement, left, right, found, port)
    _paired(left, right, found)
    unused = [layer for layer in left.values() if layer.rank is None or _tied(layer, found)]
    for layer in unused:
        del left[layer.name]
    spare = [layer for layer in right.values() if layer.rank is None]
    for layer in spare:
        del right[layer.name]
    # Layers that neither model calls here may be called elsewhere: in training, or by another method.
    idle = {layer.signature for layer in unused if layer.rank is None} & {layer.signature for layer in spare}
    if left or right or idle:
        both = ([layer for layer in side if layer.signature in idle] for side in (unused, spare))
        mine, theirs = (chain(side, more) for side, more in zip((left.values(), right.values()), both, strict=True))
        raise UserError(_open(mine, theirs, port))
    order = {layer.name: i for i, layer in enumerate(torch)}
    return Pairing(tuple(sorted(found, key=lambda p: order[p.torch.name])), tuple(unused))


def _unique(layers: Iterable[Layer], side: str) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    for layer in layers:
        if layer.name in found:
            raise UserError(f"{side}: two layers are called {layer.name}; expected one")
        found[layer.name] = layer
    return found


def _take(left: dict[str, Layer], right: dict[str, Layer], a: Layer, b: Layer, why: str, found: list[Pair]) -> None:
    found.append(Pair(a, b, why))
    del left[a.name], right[b.name]


def _named(
    pattern: str, replacement: str, left: dict[str, Layer], right: dict[str, Layer], found: list[Pair], port: str
) -> None:
    """Pairs what one entry of `names` says, whole names or the modules that they stand in."""
    expression = re.compile("([^.]+)".join(re.escape(part) for part in pattern.split("*")) + r"(?=\.|$)")
    scopes: dict[str, str] = {}
    for name in left:
        if match := expression.match(name):
            parts = iter(match.groups())
            scopes[match.group()] = re.sub(r"\*", lambda _, parts=parts: next(parts, "*"), replacement)
    if not scopes:
        near = difflib.get_close_matches(pattern, left, 1, 0)
        raise UserError(f"names: {pattern!r} matches no layer of PyTorch's that is left; the nearest is {near}")
    for scope, other in scopes.items():
        inside = {n: layer for n, layer in left.items() if n == scope or n.startswith(f"{scope}.")}
        there = {n: layer for n, layer in right.items() if n == other or n.startswith(f"{other}.")}
        if not there:
            near = difflib.get_close_matches(other, right, 1, 0)
            raise UserError(f"names: {pattern!r}: no layer of {port}'s that is left is called {other!r}; near: {near}")
        if len(inside) == len(there) == 1:
            a, b = next(iter(inside.values())), next(iter(there.values()))
            _take(left, right, a, b, "given", found)
            continue
        some: list[Pair] = []
        trim = [
            {n: replace(x, name=n[len(s) :]) for n, x in side.items()} for s, side in ((scope, inside), (other, there))
        ]
        _paired({x.name: x for x in trim[0].values()}, {x.name: x for x in trim[1].values()}, some)
        for one in some:
            a, b = left[scope + one.torch.name], right[other + one.flax.name]
            _take(left, right, a, b, f"given, {one.why}", found)


def _paired(left: dict[str, Layer], right: dict[str, Layer], found: list[Pair]) -> None:
    """Move what is certain from both sides to `found`."""
    _name(left.values(), right.values())
    _mark(left.values(), right.values())
    _by(left, right, lambda layer: (_or_none(layer.key), layer.signature), NAMES, found)
    _by(left, right, lambda layer: (layer.signature, _content(layer)), VALUES, found)
    _by(left, right, lambda layer: (_or_none(layer.key), layer.kind), "equal names, other shapes", found)
    _by(left, right, lambda layer: layer.signature, ONLY, found)
    _in_order(left, right, found)
    _owners_in_order(left, right, found)
    _by(left, right, lambda layer: (_or_none(None if layer.leaf else layer.numbered), layer.signature), NUMBERED, found)
    kinds = Counter(layer.kind for side in (left, right) for layer in side.values() if layer.rank is not None)
    if len(left) == len(right) and all(count == 2 for count in kinds.values()):
        _by(left, right, lambda layer: layer.kind, "the only ones left of this type", found)


def _by(left: dict[str, Layer], right: dict[str, Layer], key: object, why: str, found: list[Pair]) -> None:
    """Pairs the layers whose key one layer on each side has, and no other."""
    sides: list[dict[object, list[Layer]]] = []
    for side in (left, right):
        groups = defaultdict(list)
        for layer in side.values():
            groups[key(layer)].append(layer)  # pyright: ignore[reportCallIssue]
        sides.append(groups)
    for value, ones in sides[0].items():
        others = sides[1].get(value, [])
        if len(ones) == len(others) == 1:
            _take(left, right, ones[0], others[0], why, found)


def _or_none(key: str | None) -> object:
    """A key that no other layer has in place of none."""
    return object() if key is None else key


def _normal(name: str) -> str:
    """A name without `.`, `_` and capitals; `1.1` is not `11`."""
    return re.sub(r"(?<=\d)[._]+(?=\d)", "-", name).replace(".", "").replace("_", "").lower()


def _name(left: Iterable[Layer], right: Iterable[Layer]) -> None:
    """Say of each layer which name of it tells something."""
    sides = [[*left], [*right]]
    telling = _telling(*([layer.name for layer in side] for side in sides))
    for side in sides:
        numbered = _numbered([layer.name for layer in side])
        for layer in side:
            layer.numbered = _normal(numbered[layer.name])
            layer.key = layer.normal if telling(layer.name) else None


def _telling(*sides: Iterable[str]) -> Callable[[str], bool]:
    """Return what says of a name whether its numbers tell something.

    They do not where both models have as many names that are the same up to a number, and not the same numbers.
    """
    places = [_places(map(_pieces, side)) for side in sides]

    def telling(name: str) -> bool:
        some = _pieces(name)
        both = ([side[_place(some, i)] for side in places] for i in range(1, len(some), 2))
        return all(mine == theirs or len(mine) != len(theirs) for mine, theirs in both)

    return telling


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """The names with each number counted among those that stand in its place: `fc1`, `fc3` become `fc0`, `fc1`."""
    pieces = {name: _pieces(name) for name in names}
    ranks = {
        place: {number: str(i) for i, number in enumerate(sorted(some))}
        for place, some in _places(pieces.values()).items()
    }
    return {
        name: "".join(ranks[_place(some, i)][int(part)] if i % 2 else part for i, part in enumerate(some))
        for name, some in pieces.items()
    }


def _pieces(name: str) -> list[str]:
    """A name in pieces; every second one is a number."""
    return re.split(r"([0-9]+)", name)


def _place(pieces: Sequence[str], i: int) -> str:
    """What stands before a number."""
    return _normal("".join(pieces[:i]))


def _places(names: Iterable[Sequence[str]]) -> dict[str, set[int]]:
    """The numbers of all names, by what stands before them."""
    places: dict[str, set[int]] = defaultdict(set)
    for some in names:
        for i in range(1, len(some), 2):
            places[_place(some, i)].add(int(some[i]))
    return places


def _content(layer: Layer) -> object:
    """The bits of all tensors; of a layer whose numbers are all equal (fresh norms) nothing that could tell it."""
    varied = [v for v in layer.values.values() if v.size > 1 and not np.all(v == v.flat[0])]
    if not varied:
        return object()
    return tuple(sorted((n, v.tobytes()) for n, v in layer.values.items() if n not in OPTIONAL))


def _in_order(left: dict[str, Layer], right: dict[str, Layer], found: list[Pair]) -> None:
    """Pairs what is left by the order of calls, where all that are called have the same shapes in the same order."""
    sides = []
    for side, paired in ((left, [p.torch for p in found]), (right, [p.flax for p in found])):
        steps = [(layer.rank or 0, layer.signature) for layer in _called(side.values())]
        anchors = {id(layer): i for i, layer in enumerate(paired)}
        steps += [(layer.rank or 0, anchors[id(layer)]) for layer in _called(paired)]
        sides.append([step for _, step in sorted(steps, key=lambda step: step[0])])
    if sides[0] == sides[1]:
        called = [sorted(_called(side.values()), key=lambda layer: layer.rank or 0) for side in (left, right)]
        for a, b in zip(*called, strict=True):
            _take(left, right, a, b, ORDER, found)


def _called(layers: Iterable[Layer]) -> list[Layer]:
    """The layers whose call is seen: a parameter of a module's own has none."""
    return [layer for layer in layers if layer.rank is not None and not layer.leaf]


def _mark(left: Iterable[Layer], right: Iterable[Layer]) -> None:
    """Say which own parameters have a name that tells them: one that both models have, and equally often."""
    sides = [[layer for layer in side if layer.leaf] for side in (left, right)]
    counts = [Counter(map(_name_and_shape, side)) for side in sides]
    telling = _telling(*([layer.leaf for layer in side] for side in sides))
    for layer in (*sides[0], *sides[1]):
        key = _name_and_shape(layer)
        layer.mark = key[0] if counts[0][key] == counts[1][key] and telling(layer.leaf) else ""


def _name_and_shape(layer: Layer) -> tuple[str, tuple[int, ...]]:
    return _normal(layer.leaf), layer.values["value"].shape


def _owners_in_order(left: dict[str, Layer], right: dict[str, Layer], found: list[Pair]) -> None:
    """Pair own parameters by the order in which their modules are called; in a module by names and shapes alone."""
    sides: list[list[dict[object, Layer]]] = []
    for side in (left, right):
        owners = defaultdict(lambda: defaultdict(list))
        for layer in (layer for layer in side.values() if layer.leaf):
            owners[layer.owner_rank, layer.owner][layer.signature].append(layer)
        # Two of a module that nothing but their order would tell apart stay open.
        sides.append([{s: one[0] for s, one in owners[key].items() if len(one) == 1} for key in sorted(owners)])
    if [set(owner) for owner in sides[0]] == [set(owner) for owner in sides[1]]:
        for ours, theirs in zip(*sides, strict=True):
            for signature, layer in ours.items():
                _take(left, right, layer, theirs[signature], ORDER, found)


def _tied(layer: Layer, found: Sequence[Pair]) -> bool:
    """Whether its tensors are those of a paired layer (an output layer that shares the embedding's weight)."""
    values = [v for p in found for v in p.torch.values.values()]
    return bool(layer.values) and all(any(v is other for other in values) for v in layer.values.values())


def _open(left: Iterable[Layer], right: Iterable[Layer], port: str) -> str:
    """The error for layers that stay open."""
    left, right = list(left), list(right)
    example = next(((a.name, b.name) for a in left for b in right if a.kind == b.kind), None)
    say = f"say which is which with names={{{example[0]!r}: {example[1]!r}, …}}, or " if example else ""
    lines = [f"the layers of the two models cannot be paired; {say}add what is missing"]
    for layer in left:
        candidates = sorted((o for o in right if o.kind == layer.kind), key=lambda o: o.signature != layer.signature)
        near = ", ".join(map(str, candidates[:4])) or f"none: {port} has no more {layer.kind}"
        lines.append(f"PyTorch's {layer}: candidates {near}")
    lines += [
        f"{port}'s {layer}: PyTorch has no more {layer.kind}"
        for layer in right
        if not any(o.kind == layer.kind for o in left)
    ]
    return "\n".join(lines)
