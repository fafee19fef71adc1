"""Which layer of somebody's Flax model is which layer of their PyTorch model.

Layers are paired by what is certain, in this order; what stays open is an error that lists the
candidates, never a guess:

1. `names`, given by the caller, layer by layer or as patterns;
2. equal names (but for `.`, `_` and capitals), where the tensors fit; a number tells nothing where both models have as
   many layers of such names under other numbers (fc1 and fc2, fc0 and fc1; the 0, 2, 4 of a Sequential, 0, 1, 2);
3. equal values: the same weights, bit by bit, that no other layer has;
4. the only two layers left with tensors of these shapes;
5. the order of execution, where both models call layers of the same types and shapes in the same order;
6. names that are equal behind a prefix of one model: `transformer.h.0.attn` and `h.0.attn`;
7. names that differ in such numbers alone, the first with the first;
8. tensor by tensor, where the two models hold the same numbers in other layers or forms (`pairing.rearranging`).

5 and 7 say what a layer computes, not where it is written; `pairing.ordering` checks them by computing before weights
are moved.

A parameter that a module of the user's own has is a layer of its own. When it is used is not seen: where both models
have it under the same name in its module, it is paired with one of that name; two of a module that only their order
tells apart are never paired.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from parity.pairing.forms import fitting_forms
from parity.pairing.likeness import best, differ_in_numbers, module_similarity, tokens
from parity.pairing.naming import Entry, nearest, tensors_named, unpaired, within, without
from parity.pairing.pairs import (
    GIVEN,
    NAMES,
    NUMBERED,
    ONLY,
    ORDER,
    PREFIXED,
    SIMILAR,
    TIED,
    VALUES,
    Pair,
    Pairing,
    Unpaired,
)
from parity.pairing.rearranging import rest
from parity.pairing.tensors import Match, tensors_of
from parity.running.inventory import OWN
from parity.running.model_layers import OPTIONAL, ModelLayer, normal_name
from ports.errors import UserError
from ports.weights.form.rearrangement import layouts


class OpenError(UserError):
    """Layers of two models stay open.

    Attributes:
        torch, flax: these layers.
    """

    def __init__(self, text: str, torch: Sequence[ModelLayer], flax: Sequence[ModelLayer]) -> None:
        super().__init__(text)
        self.torch, self.flax = torch, flax


ALIKE = 200  # layers of one kind whose names are compared with one another


def pair(
    torch: Sequence[ModelLayer],
    flax: Sequence[ModelLayer],
    names: Mapping[str, str | None] | None = None,
    port: str = "Flax",
    confirmed: bool = False,
) -> Pairing:
    """Pairs the layers of two models, and the tensors that are left.

    Args:
        names: Flax's names by PyTorch's (`pairing.naming`); of a layer, of a module with layers in it, or of a tensor;
            each `*` stands for one part of a name and is put in again: `{"encoder.layers.*.linear1":
            "Block_*.Dense_0"}`. None for what has no counterpart.
        confirmed: whether computing confirms what only a loose order of calls says.

    Raises:
        UserError: a name that is not there.
        OpenError: layers that stay open, with their candidates.
    """
    found: list[Pair] = []
    left, right = _unique(torch, "PyTorch"), _unique(flax, port)
    given: list[Match] = []
    dropped: list[Unpaired] = []
    for pattern, other in (names or {}).items():
        entry = Entry.of(pattern, other)
        if entry.flax is None:
            dropped += without(entry, left, right, port)
        elif matches := tensors_named(entry, left, right, port):
            given += matches
        else:
            _named(entry, left, right, found, port)
    held = _held_back(given, left, right)
    _paired(left, right, found)
    for side, some in zip((left, right), held, strict=True):
        side |= some
    given += _either_way(left, right, found)
    tied = _tied(left, found)
    _partly_tied(left, right, found)
    again = _repeated(left)
    more = rest(left, right, given, found, confirmed)
    found += more.pairs
    left |= again
    tied += _tied(left, found)
    _uncalled(left, right, found)
    unused = [layer for layer in left.values() if layer.rank is None]
    spare = [layer for layer in right.values() if layer.rank is None]
    # Layers that neither model calls here may be called elsewhere: in training, or by another method.
    idle = {layer.signature for layer in unused} & {layer.signature for layer in spare}
    open_ = ([x for x in side.values() if _needed(x, idle)] for side in (left, right))
    mine, theirs = open_
    if mine or theirs:
        wanted = {layer.signature for layer in mine}
        uncalled = [layer for layer in spare if layer.signature in wanted and layer.kind != OWN]
        raise OpenError(unpaired(mine, theirs, port, uncalled), mine, theirs)
    order = {name: i for i, layer in enumerate(torch) for name in (layer.name, *layer.tensors.values())}
    return Pairing(
        tuple(sorted(found, key=lambda p: order[p.torch.name])),
        (*dropped, *(Unpaired(x.name, TIED) for x in tied), *(_spared(x, "PyTorch", port) for x in left.values())),
        tuple(_spared(x, port, "PyTorch") for x in right.values()),
        more.views,
        more.choices,
    )


def _uncalled(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
    """Pair PyTorch's layers with layers that the port has and never calls, where these are the only ones that fit.

    The port's call is missing then, and the check can say where.
    """
    sides: list[dict[object, list[ModelLayer]]] = []
    for side, called in ((left, True), (right, False)):
        groups: dict[object, list[ModelLayer]] = defaultdict(list)
        for layer in side.values():
            if layer.trained and (layer.rank is not None) is called and layer.kind != OWN:
                groups[layer.signature].append(layer)
        sides.append(groups)
    for signature, ours in sides[0].items():
        others = sides[1].get(signature, [])
        named = all(len({re.sub(r"[0-9]+", "*", x.name) for x in side}) == 1 for side in (ours, others))
        if len(ours) == len(others) and named:
            numbers = [sorted(side, key=lambda x: [*map(int, re.findall("[0-9]+", x.name))]) for side in (ours, others)]
            for a, b in zip(*numbers, strict=True):
                _take(left, right, a, b, ONLY, found)


def _needed(layer: ModelLayer, idle: Container[object]) -> bool:
    """Whether a layer must have a counterpart: it is trained and called."""
    return layer.trained and (layer.rank is not None or layer.signature in idle)


def _spared(layer: ModelLayer, side: str, other: str) -> Unpaired:
    """Say why a layer needs no counterpart."""
    what = f"never used in {side}" if layer.rank is None else "not trained"
    return Unpaired(layer.name, f"{what}, and absent from {other}")


def _unique(layers: Iterable[ModelLayer], side: str) -> dict[str, ModelLayer]:
    found: dict[str, ModelLayer] = {}
    for layer in layers:
        if layer.name in found:
            raise UserError(f"{side}: two layers are called {layer.name}; expected one")
        found[layer.name] = layer
    return found


def _take(
    left: dict[str, ModelLayer], right: dict[str, ModelLayer], a: ModelLayer, b: ModelLayer, why: str, found: list[Pair]
) -> None:
    found.append(Pair(a, b, why))
    del left[a.name], right[b.name]


def _named(
    entry: Entry, left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair], port: str
) -> None:
    """Pairs what one entry of `names` says, whole names or the modules that they stand in."""
    for scope, other in entry.scopes(left, port).items():
        inside = {n: layer for n, layer in left.items() if within(n, scope)}
        there = {n: layer for n, layer in right.items() if within(n, other)}
        if not there:
            raise UserError(
                f"names: {entry.text!r}: no layer of {port}'s that is left is called {other!r}; "
                f"near: {nearest(other, right)}"
            )
        if len(inside) == len(there) == 1:
            a, b = next(iter(inside.values())), next(iter(there.values()))
            if (a.kind == b.kind and a.shapes == b.shapes) or a.kind == b.kind != OWN:
                _take(left, right, a, b, GIVEN, found)
                continue
        some: list[Pair] = []
        trim = [
            {n: replace(x, name=n[len(s) :]) for n, x in side.items()} for s, side in ((scope, inside), (other, there))
        ]
        _paired({x.name: x for x in trim[0].values()}, {x.name: x for x in trim[1].values()}, some)
        for one in some:
            a, b = left[scope + one.torch.name], right[other + one.flax.name]
            _take(left, right, a, b, f"{GIVEN}, {one.why}", found)


def _paired(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
    """Move what is certain from both sides to `found`."""
    _name(left.values(), right.values())
    _mark(left.values(), right.values())
    _by(left, right, lambda layer: (_or_none(layer.key), layer.signature), NAMES, found)
    _by(left, right, lambda layer: (layer.signature, _content(layer)), VALUES, found)
    turned = _turned(left, right)
    shared = {layer.signature for layer in left.values()} & {layer.signature for layer in right.values()}

    def misfit(layer: ModelLayer) -> object:
        """Return a key of names alone; a layer that fits another one may have its name by chance (conv1, Conv_1)."""
        return _or_none(None if layer.signature in shared else layer.key), layer.kind

    _by(left, right, misfit, "equal names, other shapes", found)
    _only(left, right, found)
    _in_order(left, right, found)
    _owners_in_order(left, right, found)
    _behind_a_prefix(left, right, found)
    _alike_in_order(found)
    _by(left, right, lambda layer: (_or_none(None if layer.leaf else layer.numbered), layer.signature), NUMBERED, found)
    kinds = Counter(layer.kind for side in (left, right) for layer in side.values() if layer.rank is not None)
    if len(left) == len(right) and all(count == 2 for count in kinds.values()):  # own tensors may have other forms
        _by(left, right, lambda x: object() if x.kind == OWN else x.kind, "the only ones left of this type", found)
    for side, some in zip((left, right), turned, strict=True):
        side |= some


def _only(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
    """Pair the only layers of some shapes.

    A parameter that one model never uses is not one that the other does. And `blocks.0.up` is not `blocks.1.up` by its
    shape: the port may have what is fused in one block in parts in the other. `rest` looks at their tensors.
    """
    some: list[Pair] = []
    _by(left, right, lambda layer: (layer.signature, bool(layer.leaf) and layer.rank is None), ONLY, some)
    for p in some:
        if differ_in_numbers(p.torch.name, p.flax.name):
            left[p.torch.name], right[p.flax.name] = p.torch, p.flax
        else:
            found.append(p)


def _turned(left: dict[str, ModelLayer], right: dict[str, ModelLayer]) -> list[dict[str, ModelLayer]]:
    """Take own tensors of equal names away that one model holds in another form; `pairing.rearranging` pairs them."""
    found: list[dict[str, ModelLayer]] = [{}, {}]
    keys = {layer.key: layer for layer in right.values() if layer.leaf and layer.key is not None}
    for layer in [*left.values()]:
        other = keys.pop(layer.key, None) if layer.leaf and layer.key is not None else None
        if other is not None and layouts(layer.values["value"].shape, other.values["value"].shape):
            found[0][layer.name], found[1][other.name] = left.pop(layer.name), right.pop(other.name)
    return found


def _held_back(
    given: Sequence[Match], left: dict[str, ModelLayer], right: dict[str, ModelLayer]
) -> list[dict[str, ModelLayer]]:
    """Take the layers away of which the caller named a tensor.

    Raises:
        UserError: the caller also named the whole layer.
    """
    names = [{t.layer.name for match in given for t in getattr(match, side)} for side in ("torch", "flax")]
    for side, some in zip((left, right), names, strict=True):
        if twice := sorted(some - side.keys()):
            raise UserError(f"names: {twice[0]}: got an entry for the layer and one for a tensor in it, expected one")
    return [{n: side.pop(n) for n in some} for side, some in zip((left, right), names, strict=True)]


def _either_way(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> list[Match]:
    """Return matches in place of pairs of own tensors that fit in several forms: a square matrix may be transposed.

    `pairing.choosing` tells the form. Where both models hold the same numbers, it is plain.
    """
    matches: list[Match] = []
    for p in [*found]:
        if not (_turnable(p.torch) and _turnable(p.flax)) or _content(p.torch) == _content(p.flax):
            continue
        (a,), (b,) = tensors_of([p.torch]), tensors_of([p.flax])
        if len(forms := fitting_forms([a], [b])) > 1:
            forms = (*(form for form in forms if form.layout.plain), *(form for form in forms if not form.layout.plain))
            matches.append(Match((a,), (b,), forms, p.why, plainly=True))
            left[p.torch.name], right[p.flax.name] = p.torch, p.flax
            found.remove(p)
    return matches


def _turnable(layer: ModelLayer) -> bool:
    """Whether a layer is a trained parameter of a module's own with several axes, of which no rule says the layout."""
    return bool(layer.leaf) and layer.trained and not layer.ruled and layer.values["value"].ndim > 1


def _by(left: dict[str, ModelLayer], right: dict[str, ModelLayer], key: object, why: str, found: list[Pair]) -> None:
    """Pairs the layers whose key one layer on each side has, and no other."""
    sides: list[dict[object, list[ModelLayer]]] = []
    for side in (left, right):
        groups = defaultdict(list)
        for layer in side.values():
            groups[key(layer)].append(layer)  # pyright: ignore[reportCallIssue]
        sides.append(groups)
    for value, ones in sides[0].items():
        others = sides[1].get(value, [])
        if len(ones) == len(others) == 1:
            _take(left, right, ones[0], others[0], why, found)


def _behind_a_prefix(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
    """Pairs layers whose names are equal but for what stands in front on one side; says so of those paired in order."""
    for i, p in enumerate(found):
        if p.why in (ORDER, ONLY) and {p.torch.normal, p.flax.normal} & {*_ends(p.torch)} & {*_ends(p.flax)}:
            found[i] = replace(p, why=PREFIXED)
    tails = [Counter(end for layer in side.values() for end in _ends(layer)) for side in (left, right)]
    for a in [*left.values()]:
        for b in [*right.values()]:
            for end in {a.normal, b.normal} & {*_ends(a)} & {*_ends(b)}:
                sole = tails[0][end] == tails[1][end] == 1
                if sole and a.key is not None and a.signature == b.signature and a.name in left and b.name in right:
                    _take(left, right, a, b, PREFIXED, found)


def _alike_in_order(found: list[Pair]) -> None:
    """Say of layers that were paired in order where their modules' names say the same."""
    kinds: dict[object, list[tuple[int, str, str]]] = defaultdict(list)
    for i, p in enumerate(found):
        if p.why == ORDER:
            kinds[p.torch.signature].append((i, p.torch.owner or p.torch.name, p.flax.owner or p.flax.name))
    for some in kinds.values():
        mine, theirs = (tokens(side) for side in ([a for _, a, _ in some], [b for _, _, b in some]))
        if len(some) <= ALIKE:
            alike = best(
                [*mine], [*theirs], lambda a, b, mine=mine, theirs=theirs: module_similarity(mine[a], theirs[b])
            )
            for i, a, b in some:
                found[i] = replace(found[i], why=SIMILAR) if (a, b) in alike else found[i]


def _ends(layer: ModelLayer) -> list[str]:
    """Return what a layer's name ends with, whole parts of it."""
    parts = layer.name.split(".")
    return [normal_name(".".join(parts[i:])) for i in range(len(parts))]


def _or_none(key: str | None) -> object:
    """A key that no other layer has in place of none."""
    return object() if key is None else key


def _name(left: Iterable[ModelLayer], right: Iterable[ModelLayer]) -> None:
    """Say of each layer which name of it tells something."""
    sides = [[*left], [*right]]
    telling = _telling(*([layer.name for layer in side] for side in sides))
    for side in sides:
        numbered = _numbered([layer.name for layer in side])
        for layer in side:
            layer.numbered = normal_name(numbered[layer.name])
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
    return normal_name("".join(pieces[:i]))


def _places(names: Iterable[Sequence[str]]) -> dict[str, set[int]]:
    """The numbers of all names, by what stands before them."""
    places: dict[str, set[int]] = defaultdict(set)
    for some in names:
        for i in range(1, len(some), 2):
            places[_place(some, i)].add(int(some[i]))
    return places


def _content(layer: ModelLayer) -> object:
    """The bits of all tensors; of a layer whose numbers are all equal (fresh norms) nothing that could tell it."""
    varied = [v for v in layer.values.values() if v.size > 1 and not np.all(v == v.flat[0])]
    if not varied:
        return object()
    return tuple(sorted((n, v.tobytes()) for n, v in layer.values.items() if n not in OPTIONAL))


def _in_order(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
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


def _called(layers: Iterable[ModelLayer]) -> list[ModelLayer]:
    """The layers whose call is seen: a parameter of a module's own has none."""
    return [layer for layer in layers if layer.rank is not None and layer.seen and not layer.leaf]


def _mark(left: Iterable[ModelLayer], right: Iterable[ModelLayer]) -> None:
    """Say which own parameters have a name that tells them: one that both models have, and equally often."""
    sides = [[layer for layer in side if layer.leaf] for side in (left, right)]
    counts = [Counter(map(_name_and_shape, side)) for side in sides]
    telling = _telling(*([layer.leaf for layer in side] for side in sides))
    for layer in (*sides[0], *sides[1]):
        key = _name_and_shape(layer)
        layer.mark = key[0] if counts[0][key] == counts[1][key] and telling(layer.leaf) else ""


def _name_and_shape(layer: ModelLayer) -> tuple[str, tuple[int, ...]]:
    return normal_name(layer.leaf), layer.values["value"].shape


def _owners_in_order(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: list[Pair]) -> None:
    """Pair own parameters by the order in which their modules are called; in a module by names and shapes alone."""
    sides: list[list[dict[object, ModelLayer]]] = []
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


def _tied(left: dict[str, ModelLayer], found: Sequence[Pair]) -> list[ModelLayer]:
    """Take the layers away whose tensors are those of a paired layer: an output layer with the embedding's weight."""
    known = {id(v) for p in found for v in p.torch.values.values()}
    tied = [layer for layer in left.values() if layer.values and all(id(v) in known for v in layer.values.values())]
    for layer in tied:
        del left[layer.name]
    return tied


def _partly_tied(left: dict[str, ModelLayer], right: dict[str, ModelLayer], found: Sequence[Pair]) -> None:
    """Leave of a layer only the tensors that no other layer is, such as the bias of a tied output layer.

    The port may have the whole layer nevertheless, with a copy of the tensor.
    """
    known = {id(v) for p in found for v in p.torch.values.values()}
    known |= {id(v) for layer in left.values() if len(layer.values) == 1 for v in layer.values.values()}
    whole = {layer.signature for layer in right.values()}
    for name, layer in [*left.items()]:
        own = {leaf: value for leaf, value in layer.values.items() if id(value) not in known}
        if 0 < len(own) < len(layer.values) and layer.signature not in whole:
            left[name] = replace(layer, kind=OWN, values=own, tensors={leaf: layer.tensors[leaf] for leaf in own})


def _repeated(left: dict[str, ModelLayer]) -> dict[str, ModelLayer]:
    """Take the layers away whose tensors another layer has: a bias that all blocks share. One that is called stays."""
    seen: set[int] = set()
    again: dict[str, ModelLayer] = {}
    for layer in sorted(left.values(), key=lambda layer: layer.rank is None):
        ids = {id(v) for v in layer.values.values()}
        if ids and ids <= seen:
            again[layer.name] = left.pop(layer.name)
        seen |= ids
    return again
