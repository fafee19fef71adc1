"""Which tensor of a module is which of another one's, where the two modules are one.

A tensor may be several of a list of layers: the `w1` of all experts, which the port holds in one array. Equal names
tell, what a tensor is in its module, its size, and similar names. Tensors of one size that nothing of this tells apart
are rivals: `pairing.choosing` takes the way that values or computing tell.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from parity.pairing.forms import fitting_forms, usual
from parity.pairing.groups import SHAPES as LEFT
from parity.pairing.groups import common, lists
from parity.pairing.likeness import ROLES, Token, best, part_similarity, without_role, words
from parity.pairing.pairs import COMPUTED, SIMILAR
from parity.pairing.tensors import Match, Tensor
from parity.running.inventory import OWN
from parity.running.model_layers import normal_name

Group = tuple[Tensor, ...]
Listed = tuple[Sequence[Tensor], Sequence[Tensor]]
RIVALS = 4  # tensors of one size that are tried in every order
# The names in Meta's Llama of the layers of a gated MLP, which most other projects spell out.
LLAMA = {"w1": "gate", "w2": "down", "w3": "up"}


def assigned(ours: Sequence[Group], others: Sequence[Group], why: str) -> list[Match]:
    """Return a match for each of PyTorch's groups; none where one of them has none."""
    found: list[Match] = []
    pending, free = list(ours), list(others)

    def take(a: Group, b: Group, why: str, rivals: tuple[Group, ...] = ()) -> None:
        if forms := fitting_forms(a, b):
            found.append(Match(a, b, forms, why, rivals, spelled=_in_llama(a, b)))
            pending.remove(a)
            free.remove(b)

    keys: tuple[Callable[[Group], object], ...] = (_last, _role, _size)
    for key in keys:
        mine, theirs = (Counter(map(key, side)) for side in (pending, free))
        for a in [*pending]:
            same = [b for b in free if key(b) == key(a)]
            told = key is not _role or _roles_tell(_size(a), (*pending, *free))
            if len(same) == 1 and mine[key(a)] == theirs[key(a)] == 1 and told:
                take(a, same[0], why)
    for a, b in _similar(pending, free):
        take(a, b, SIMILAR)
    for several in _classes(pending):
        rivals = tuple(b for b in free if _size(b) == _size(several[0]))
        if len(rivals) == len(several) <= RIVALS:
            for a, b in zip(several, _likeliest(several, rivals), strict=True):
                take(a, b, COMPUTED if len(rivals) > 1 else why, rivals if len(rivals) > 1 else ())
    return [] if pending else found


def _likeliest(several: Sequence[Group], rivals: Sequence[Group]) -> Sequence[Group]:
    """Return the rivals in the order that names say, and in which most kernels have their outputs last."""
    return max(
        itertools.permutations(rivals),
        key=lambda order: [sum(map(test, several, order)) for test in (_in_llama, usual)],
    )


def _in_llama(a: Group, b: Group) -> bool:
    """Whether one has the name of a layer in Meta's Llama, and the other the word for it."""
    names = [_place(group)[1] for group in (a, b)]
    return any(LLAMA.get(own.lower(), "?") in words(other) for own, other in (names, names[::-1]))


def _classes(groups: Iterable[Group]) -> list[list[Group]]:
    """Return the groups of each size."""
    found: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        found[_size(group)].append(group)
    return [*found.values()]


def _size(group: Group) -> int:
    return sum(t.value.size for t in group)


def _role(group: Group) -> str:
    return group[0].role


def _roles_tell(size: int, groups: Sequence[Group]) -> bool:
    """Whether all groups of a size have names that say what they are: beside `h`, a `g` may be no weight."""
    alike = [group for group in groups if _size(group) == size]
    return len(alike) == 2 or {*map(_role, alike)} <= {*ROLES.values()}


def _place(group: Group) -> tuple[str, str]:
    """Return the module that a group stands in, and its name there: for a list, in front of and behind the number."""
    if len(group) == 1:
        return group[0].module, group[0].last
    pieces = [re.split(r"(\d+)", t.full) for t in group[:2]]
    at = next(i for i, (a, b) in enumerate(zip(*pieces, strict=True)) if a != b)
    name = "".join(pieces[0][at + 1 :]).strip("._")
    module, _, leaf = name.rpartition(".")
    return "".join(pieces[0][:at]).strip("._"), module if module and leaf in ("weight", "kernel") else name


def _last(group: Group) -> str:
    return normal_name(_place(group)[1])


def _tokens(group: Group) -> tuple[list[Token], list[Token]]:
    """Return the words of the module that a group stands in, and those of its name there."""
    at = len(words(_place(group)[0]))
    names = [t.tokens[at:] for t in group]
    return [*group[0].tokens[:at]], without_role(common(names) if len(group) > 1 else names[0])


def _similar(ours: Sequence[Group], others: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    """Yield the groups of one size whose names are each other's only best."""
    sides = [{_place(group)[1]: group for group in side} for side in (ours, others)]

    def score(a: str, b: str) -> float:
        mine, theirs = sides[0][a], sides[1][b]
        said = [_tokens(mine)[1], _tokens(theirs)[1]]
        if _size(mine) != _size(theirs) or (not any(said) and not _roles_tell(_size(mine), (*ours, *others))):
            return 0.0
        return part_similarity(*(side or ["?"] for side in said))

    yield from ((sides[0][a], sides[1][b]) for a, b in best([*sides[0]], [*sides[1]], score))


# --- a module with all tensors of another one, which may be lists of layers there


def inside(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return the matches of modules, all of whose tensors or lists of layers stand in one module of the other model."""
    found: list[Match] = []
    for cut, few, more, turned in (
        (lists, mine, theirs, False),
        (lists, theirs, mine, True),
        (_several, mine, theirs, False),
        (_several, theirs, mine, True),
    ):
        matched = {id(t) for match in found for t in (*match.torch, *match.flax)}
        left = [[t for t in side if id(t) not in matched] for side in (few, more)]
        sides = _modules(cut(left[0])), _modules((t,) for t in left[1])
        for a, b in _pairs(*sides):
            others = [group for group in sides[1][b] if _size(group) in map(_size, sides[0][a])]
            found += assigned(others, sides[0][a], SIMILAR) if turned else assigned(sides[0][a], others, SIMILAR)
    return found


def one_level_up(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return the matches of modules, all of whose tensors stand in the parts of one module of the other model.

    PyTorch's LSTM has four tensors, a port's cell two dense layers.
    """
    found: list[Match] = []
    for few, more, turned in ((mine, theirs, False), (theirs, mine, True)):
        raised = {t.full: t for t in more}
        copies = [replace(t, module=t.module.rpartition(".")[0]) for t in more if "." in t.module]
        sides = _modules(_several(few)), _modules((t,) for t in copies)
        for a, b in _pairs(*sides):
            if Counter(map(_size, sides[0][a])) != Counter(map(_size, sides[1][b])):
                continue
            ours, others = (sides[1][b], sides[0][a]) if turned else (sides[0][a], sides[1][b])
            for match in assigned(ours, others, SIMILAR):
                torch, flax = (tuple(raised.get(t.full, t) for t in side) for side in (match.torch, match.flax))
                rivals = tuple(tuple(raised.get(t.full, t) for t in group) for group in match.rivals)
                found.append(replace(match, torch=torch, flax=flax, rivals=rivals))
    return found


def left_alike(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return the matches of tensors that are the only ones of their sizes left, or whose names are initials.

    Names that differ in their numbers alone are those of one list of layers: the first is paired with the first. Of
    several lists of one size, `q_norm` is `qn`.
    """
    found: list[Match] = []
    sides = [_by_size(side) for side in (mine, theirs)]
    for size, ours in sides[0].items():
        others = sides[1].get(size, [])
        if len(ours) != len(others):
            continue
        pairs = [(ours[0], others[0])] if len(ours) == 1 else _by_initials(ours, others)
        for a, b in pairs:
            fits = len(a) == len(b) and _alike(a, b)
            found += [m for x, y in zip(a, b, strict=True) for m in assigned([(x,)], [(y,)], LEFT)] if fits else []
    return found


def left_rivals(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return matches of the port's own tensors of one size that nothing tells apart but computing.

    They may be lists of layers: one `in` and one `out` for each block, whose kernels are as large.
    """
    found: list[Match] = []
    sides = [_by_size(side) for side in (mine, theirs)]
    for size, ours in sides[0].items():
        others = sides[1].get(size, [])
        lengths = {len(some) for some in (*ours, *others)}
        own = all(t.layer.kind == OWN for some in others for t in some)
        if own and len(ours) == len(others) <= RIVALS and len(lengths) == 1:
            for layer in zip(*ours, *others, strict=True):
                groups = [(t,) for t in layer]
                found += assigned(groups[: len(ours)], groups[len(ours) :], COMPUTED)
    return found


def _by_initials(ours: Sequence[Sequence[Tensor]], others: Sequence[Sequence[Tensor]]) -> list[Listed]:
    """Return the lists of which one's name has the initials of the other's; none if one of them has no such other."""
    sides = [{".".join(_own_words(some[0])): some for some in side} for side in (ours, others)]

    def score(a: str, b: str) -> float:
        mine, theirs = a.split("."), b.split(".")
        initials = ["".join(word[0] for word in side) for side in (mine, theirs)]
        return float(initials[0] == "".join(theirs) or initials[1] == "".join(mine))

    pairs = best([*sides[0]], [*sides[1]], score)
    return [(sides[0][a], sides[1][b]) for a, b in pairs] if len(pairs) == len(ours) else []


def _own_words(tensor: Tensor) -> list[str]:
    """Return the words of a tensor's own name, or of its module's if its own name says only what it is there."""
    *modules, last = tensor.full.split(".")
    return words(modules[-1] if modules and normal_name(last) in ROLES else last)


def _by_size(tensors: Iterable[Tensor]) -> dict[int, list[list[Tensor]]]:
    """Return the tensors of each size: those of one list of layers together, in its order."""
    found: dict[int, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in sorted(tensors, key=lambda t: [int(number) for number in re.findall(r"\d+", t.full)]):
        found[tensor.value.size][re.sub(r"\d+", "*", tensor.full)].append(tensor)
    return {size: [*some.values()] for size, some in found.items()}


def _alike(ours: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether nothing says that these are other tensors: a weight is no bias."""
    known = {*ROLES.values()}
    mine, theirs = ({t.role for t in side} & known for side in (ours, others))
    return mine <= theirs or theirs <= mine


def _several(tensors: Iterable[Tensor]) -> Iterator[Group]:
    """Yield the tensors of modules with several."""
    modules = _modules((t,) for t in tensors)
    yield from (group for some in modules.values() if len(some) > 1 for group in some)


def _modules(groups: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        found[_place(group)[0]].append(group)
    return dict(found)


def _pairs(ours: dict[str, list[Group]], others: dict[str, list[Group]]) -> list[tuple[str, str]]:
    """Return the modules that have groups of the same sizes: by their names, or the only two of these sizes."""

    def fits(a: str, b: str) -> bool:
        mine, theirs = (Counter(map(_size, side)) for side in (ours[a], others[b]))
        return all(theirs[size] == count for size, count in mine.items())

    def score(a: str, b: str) -> float:
        return part_similarity(_tokens(ours[a][0])[0], _tokens(others[b][0])[0]) if fits(a, b) else 0.0

    found = best([*ours], [*others], score)
    for a in ours:
        alone = [b for b in others if fits(a, b)]
        if len(alone) == 1 and [other for other in ours if fits(other, alone[0])] == [a] and (a, alone[0]) not in found:
            found.append((a, alone[0]))
    return found
