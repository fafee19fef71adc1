"""Several tensors of one model that one tensor of the other holds: projections side by side, and lists of layers."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from parity.pairing.forms import GROUP, axes_without, fitting_forms
from parity.pairing.likeness import (
    CLOSE,
    ROLES,
    Number,
    Token,
    differ_in_numbers,
    part_similarity,
    similarity,
    without_role,
    words,
)
from parity.pairing.pairs import SIMILAR
from parity.pairing.tensors import Match, Tensor
from parity.running.inventory import OWN

# What a name of one tensor says of the parts that it holds: PyTorch's attention has query, key and value in one.
FUSED = {"inproj": "qkv", "attn": "qkv", "wi": "gu", "gateup": "gu"}
# The order of the parts of a complex number, as `torch.view_as_real` has it, by what their names end with.
COMPLEX = {"re": 0, "real": 0, "im": 1, "imag": 1}
SHAPES = "the only ones of this size"
WEIGHT = "weight"
BESIDE = 6  # so many tensors side by side are tried in all combinations, of more those that follow one another
SPELLED = 1.0  # what a name adds that spells the parts of a tensor
NAMED = 0.3  # a likeness of groups to which names add something
AFTER = "post"  # in a name that says what comes before a norm, not what the norm belongs to
EQUAL = 4.0  # what equal numbers add to the likeness of names, which is 1 at most


@dataclass(frozen=True)
class _Candidate:
    """Tensors of both models that may hold the same numbers.

    Attributes:
        score: how well names and values say so.
    """

    score: float
    torch: tuple[Tensor, ...]
    flax: tuple[Tensor, ...]

    @property
    def ids(self) -> set[int]:
        return {id(t) for t in (*self.torch, *self.flax)}


def groups(mine: Sequence[Tensor], theirs: Sequence[Tensor], least: float = NAMED) -> list[Match]:
    """Return the matches of groups and of single tensors, best names first; what two claim alike stays open.

    Args:
        least: how well names have to say that a group is meant.
    """
    candidates = sorted((one for one in _candidates(mine, theirs) if one.score > least), key=lambda one: -one.score)
    found: list[Match] = []
    used: set[int] = set()
    for one in candidates:
        if one.ids & used:
            continue
        alike = (other for other in candidates if abs(other.score - one.score) < CLOSE)
        rivals = [other for other in alike if other.ids & one.ids and not other.ids & used]
        if len(rivals) == 1 and (forms := fitting_forms(one.torch, one.flax)):
            found.append(Match(one.torch, one.flax, forms, SIMILAR, spelled=_spells(one.torch, one.flax)))
            used |= one.ids
    return found


def doubted(found: Sequence[Match]) -> list[Match]:
    """Return the matches, with stacked vectors of one size as each other's rivals.

    In a stack the check sees no layer that could contradict the names. If computing tells nothing, the names decide,
    unless they may mislead: `post_attention_layernorm` is the norm of the MLP.
    """
    alike: dict[object, list[Match]] = defaultdict(list)
    for match in found:
        first = match.torch[0]
        stacked = len(match.torch) > 1 and len({*_pattern(match.torch)}) == len(match.flax) == 1
        by_names = match.why == SIMILAR and not _same_numbers(match.torch, match.flax[0])
        if stacked and by_names and first.value.ndim == 1:
            alike[_role_and_size(first), len(match.torch)].append(match)
    changed: dict[int, Match] = {}
    for some in alike.values():
        if 1 < len(some) <= GROUP:
            rivals = tuple(match.flax for match in some)
            changed |= {id(match): replace(match, rivals=rivals, spelled=not _after(some)) for match in some}
    return [changed.get(id(match), match) for match in found]


def _after(matches: Sequence[Match]) -> bool:
    """Whether a name says what a tensor comes after, and not what it belongs to."""
    return any(AFTER in words(match.torch[0].full) for match in matches)


def _candidates(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterable[_Candidate]:
    found: dict[object, _Candidate] = {}
    counts = [Counter(map(_role_and_size, side)) for side in (mine, theirs)]
    for ours, others, turned in ((mine, theirs, False), (theirs, mine, True)):
        # Where both models have as many tensors of a size, none of them holds a list.
        stacked = [one for one in others if counts[0][_role_and_size(one)] != counts[1][_role_and_size(one)]]
        fits = [
            (group, one, listed)
            for some, holding, listed in ((_stacks(ours, stacked), stacked, True), (_siblings(ours), others, False))
            for group in some
            for one in holding
            if sum(t.value.size for t in group) == one.value.size and _alike_roles(group, one)
            if listed or ((one.value.ndim > 1 or one.role != "weight") and _joined(group))
        ]
        # What stands side by side does so in every block: as often as the tensors that hold it.
        sides = {tuple(map(id, group)): _pattern(group) for group, _, listed in fits if not listed}
        many, single = Counter(sides.values()), Counter(_pattern((one,)) for one in others)
        for group, one, listed in fits:
            if listed or many[_pattern(group)] == single[_pattern((one,))]:
                several = group if listed else _in_order(group, one)
                a, b = ((one,), several) if turned else (several, (one,))
                _keep(found, _Candidate(_group_score(group, one), a, b))
    for one in _lists_side_by_side(mine, theirs):
        _keep(found, one)
    for a in mine:
        for b in theirs:
            if a.value.size == b.value.size and _alike_roles((a,), b):
                _keep(found, _Candidate(_single_score(a, b), (a,), (b,)))
    return found.values()


def _lists_side_by_side(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[_Candidate]:
    """Yield lists of PyTorch's layers that the port holds stacked, and fused where PyTorch is not, or separate."""
    listed = {id(some[0]): some for some in lists(mine)}
    firsts = [some[0] for some in listed.values()]
    for group in _siblings(firsts):
        several = [listed[id(t)] for t in group]
        size, layers = sum(t.value.size for some in several for t in some), len(several[0])
        if len({len(some) for some in several}) > 1 or not _joined(group):
            continue
        for one in theirs:
            if one.value.size == size and one.value.ndim > 1 and _alike_roles(group, one):
                order = _in_order(group, one)
                torch = tuple(listed[id(t)][i] for i in range(layers) for t in order)
                yield _Candidate(_group_score(group, one, torch), torch, (one,))
    for group in _siblings(theirs):
        for some in listed.values():
            first = some[0]
            fits = sum(t.value.size for t in group) == len(some) * first.value.size and _alike_roles(group, first)
            if fits and all(len(some) in t.shape for t in group):
                yield _Candidate(_group_score(group, first, some), some, _in_order(group, first))


def _joined(group: Sequence[Tensor]) -> bool:
    """Whether whole layers may stand side by side: nobody joins the biases of two norms, or of two convolutions."""
    weights = [t.layer.values[WEIGHT] for t in group if t.layer.kind != OWN and WEIGHT in t.layer.values]
    return len({w.shape[1:] for w in weights}) <= 1 and all(w.ndim > 1 for w in weights)


def _role_and_size(tensor: Tensor) -> tuple[str, int]:
    return (tensor.role if tensor.role in ROLES.values() else "", tensor.value.size)


def _keep(found: dict[object, _Candidate], one: _Candidate) -> None:
    key = frozenset(one.ids)
    if one.score > 0 and (key not in found or one.score > found[key].score):
        found[key] = one


def unnamed_groups(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return the matches of groups of which names say nothing, where they are the only ones of their sizes."""
    return groups(mine, theirs, 0.0)


def _pattern(group: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names with a star for each number."""
    return tuple(re.sub(r"\d+", "*", t.full) for t in group)


def sole_tensors(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Pair the only two tensors left of a role and size, of layers whose tensors stand in several modules."""
    sides: list[dict[object, list[Tensor]]] = [defaultdict(list), defaultdict(list)]
    for side, tensors in zip(sides, (mine, theirs), strict=True):
        for tensor in tensors:
            side[tensor.role, tensor.value.size].append(tensor)
    sole = (
        (some[0], sides[1][key][0]) for key, some in sides[0].items() if len(some) == len(sides[1].get(key, ())) == 1
    )
    return [
        Match((a,), (b,), forms, SHAPES)
        for a, b in sole
        if (forms := fitting_forms((a,), (b,)))
        if not differ_in_numbers(a.full, b.full)
    ]


def _alike_roles(group: Sequence[Tensor], one: Tensor) -> bool:
    """Whether nothing says that these are other tensors: a weight is no bias."""
    known = {*ROLES.values()}
    roles = {t.role for t in group} & known
    return roles <= {one.role} if one.role in known else len(roles) <= 1


def lists(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors of one name in all layers of a list."""
    numbered: dict[object, list[tuple[int, Tensor]]] = defaultdict(list)
    for tensor in tensors:
        pieces = re.split(r"(\d+)", tensor.full)
        for i in range(1, len(pieces), 2):
            numbered["".join(pieces[:i]), "".join(pieces[i + 1 :])].append((int(pieces[i]), tensor))
    for some in numbered.values():
        some.sort(key=lambda one: one[0])
        if len(some) > 1 and [n for n, _ in some] == [*range(len(some))] and len({t.shape for _, t in some}) == 1:
            yield tuple(t for _, t in some)


def _stacks(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the lists of repeated modules that the other model may hold stacked.

    Modules are stacked whole: one tensor of the other model may be as large as a list by chance, but then most lists
    of these modules have no such tensor.
    """
    repeated: dict[object, list[tuple[Tensor, ...]]] = defaultdict(list)
    for group in lists(tensors):
        first, second = (re.split(r"(\d+)", t.full) for t in group[:2])
        at = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        repeated["".join(first[:at]), len(group)].append(group)
    for some in repeated.values():
        if 2 * _counterparts(some, others) >= len(some):
            yield from some


def _counterparts(some: Sequence[tuple[Tensor, ...]], others: Sequence[Tensor]) -> int:
    """Return for how many lists there is a tensor of their size; several may stand side by side in one tensor."""
    by_size: dict[int, list[tuple[Tensor, ...]]] = defaultdict(list)
    for group in some:
        by_size[sum(t.value.size for t in group)].append(group)
    count = 0
    for size, groups_ in by_size.items():
        free = len(groups_)
        for several in range(1, GROUP + 1):
            ones = [t for t in others if t.value.size == several * size and any(_alike_roles(g, t) for g in groups_)]
            taken = min(free // several, len(ones)) * several
            free, count = free - taken, count + taken
    return count


def _siblings(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield up to `GROUP` tensors that stand side by side: of layers in one module, or of one module."""
    siblings: dict[object, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        for axis in _joining(tensor):
            place = tensor.module.rpartition(".")[0]
            siblings[place, tensor.last, axis, axes_without(tensor.shape, axis)].append(tensor)
    for tensor in tensors:
        for axis in _joining(tensor):
            role = tensor.role if tensor.role in ROLES.values() else ""
            siblings[tensor.module, role, "own", axis, axes_without(tensor.shape, axis)].append(tensor)
        if len(said := words(tensor.last)) > 1:  # `C_re` and `C_im`
            siblings[tensor.module, *said[:-1], "parts", tensor.shape].append(tensor)
    for some in siblings.values():
        for size in range(2, min(GROUP, len(some)) + 1):
            if len(some) <= BESIDE:
                yield from itertools.combinations(some, size)
            else:
                yield from (tuple(some[i : i + size]) for i in range(len(some) - size + 1))


def _joining(tensor: Tensor) -> range:
    """Return the axes along which a tensor may stand beside others: an own kernel may have its outputs last."""
    return range(tensor.value.ndim if tensor.layer.kind == OWN and tensor.value.ndim > 1 else 1)


def _single_score(a: Tensor, b: Tensor) -> float:
    """Return how well names say that two tensors are one: less than a group, whose parts might be like one tensor."""
    return similarity(a.tokens, b.tokens) - 0.5 + (EQUAL if _same_numbers((a,), b) else 0.0)


def _group_score(group: Sequence[Tensor], one: Tensor, listed: Sequence[Tensor] = ()) -> float:
    """Return how well names say that one tensor holds a group: the common part of the names, and what they add.

    Args:
        listed: all tensors of a list of layers of which the group, or the one tensor, is the first layer's.
    """
    sides = [common([t.tokens for t in group]), [*one.tokens]]
    if listed:
        own = 0 if group[0] in listed else 1
        sides[own] = common([sides[own], *(t.tokens for t in listed)])
    whole = part_similarity(*map(without_role, sides))
    letters = _letters(group)
    spelled = len(letters) == len(group) and any(sorted(letters) == sorted(p) for p in _spelled(one, len(letters)))
    score = whole + (SPELLED if spelled else 0.0) + 0.01 * len(group)
    return score + (EQUAL if not listed and _same_numbers(group, one) else 0.0)


def _letters(group: Sequence[Tensor]) -> str:
    """Return the first letters of what tells the tensors of a group apart: qkv."""
    shared = common([t.tokens for t in group])
    own = ([token for token in t.tokens if token not in shared and not isinstance(token, Number)] for t in group)
    return "".join(some[0][0] for some in own if some)


def _spelled(one: Tensor, length: int) -> Iterator[str]:
    """Yield what a name may say of the parts in a tensor: `wqkv`, `query_key_value` and `in_proj` say q, k and v."""
    split = words(one.full)
    for said in (*split, "".join(word[0] for word in split)):
        yield from (said[i : i + length] for i in range(len(said) - length + 1))
    own = "".join(words(".".join(one.full.split(".")[-2:])))  # `attn.c_attn.weight` holds all, `attn_pool.kv` does not
    yield from (letters for name, letters in FUSED.items() if name in own and len(letters) == length)


def _in_order(group: tuple[Tensor, ...], one: Tensor) -> tuple[Tensor, ...]:
    """Return a group in the order that the name of the one tensor says, or that of the parts of complex numbers."""
    if _complex(group):
        return tuple(sorted(group, key=_part))
    letters = _letters(group)
    if len(letters) < len(group) or len({*letters}) < len(group):
        return group
    for part in _spelled(one, len(letters)):
        if sorted(part) == sorted(letters):
            return tuple(group[letters.index(letter)] for letter in part)
    return group


def _complex(group: Sequence[Tensor]) -> bool:
    """Whether the names say that these are the real and the imaginary part."""
    return sorted(map(_part, group)) == [0, 1]


def _part(tensor: Tensor) -> int:
    """Return which part of complex numbers a tensor is by its name; -1 if the name says neither."""
    return next((COMPLEX.get(word, -1) for word in words(tensor.last)[-1:]), -1)


def _spells(torch: tuple[Tensor, ...], flax: tuple[Tensor, ...]) -> bool:
    """Whether the name of the one tensor says that it holds the others in their order, or that of complex numbers."""
    group, one = (torch, flax[0]) if len(flax) == 1 else (flax, torch[0])
    if _complex(group):
        return True
    letters = _letters(group)
    return len(letters) == len({*letters}) == len(group) > 1 and letters in _spelled(one, len(letters))


def _same_numbers(group: Sequence[Tensor], one: Tensor) -> bool:
    """Whether a tensor holds the numbers of a group."""
    parts = [t.content for t in group if t.content]
    if one.content is None or len(parts) < len(group):
        return False
    return one.content == tuple(sum(sums) % 2**64 for sums in zip(*parts, strict=True))


def common(names: Sequence[Sequence[Token]]) -> list[Token]:
    """Return the words that all names have, in their order."""
    return [word for word in names[0] if all(word in other for other in names[1:])]
