"""Modules and lists of layers that are paired in the order of their calls.

Among those that hold tensors of the same sizes the order is taken where both models have as many of them, and where the
same paired layers are called before each. Paired layers that the two models call in another order than most, as
branches that do not depend on each other, say nothing. Computing confirms the order before weights are moved
(`pairing.ordering`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from parity.pairing.assigning import assigned
from parity.pairing.forms import fitting_forms
from parity.pairing.groups import lists
from parity.pairing.pairs import ORDER, Pair
from parity.pairing.tensors import NEVER, Match, Tensor

MOST = 16  # tensors of a size whose order computing has to confirm
FEW = 5  # one layer of so many may be called in another order
Anchors = Sequence[tuple[int, int]]
Group = tuple[Tensor, ...]


def by_module(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found[tensor.module].append(tensor)
    return dict(found)


def anchors(paired: Iterable[Pair], matches: Iterable[Match]) -> Anchors:
    """Return when the layers are called that are paired already: in PyTorch's model and in the port.

    Of layers that the two models call in another order the most are taken whose order is one.
    """
    ranks = [(p.torch.rank, p.flax.rank) for p in paired if not p.torch.leaf and not p.flax.leaf]
    known = [(a, b) for a, b in ranks if a is not None and b is not None]
    known += [(m.torch[0].rank, m.flax[0].rank) for m in matches if _called(m.torch) and _called(m.flax)]
    return _rising(sorted({*known}))


def _called(group: Group) -> bool:
    return group[0].rank < NEVER and group[0].layer.placed


def _rising(pairs: Sequence[tuple[int, int]]) -> Anchors:
    """Return the most of some pairs whose second numbers do not fall."""
    ends: list[int] = []
    places = []
    for _, number in pairs:
        place = bisect_right(ends, number)
        ends[place : place + 1] = [number]
        places.append(place)
    found: list[tuple[int, int]] = []
    for pair, place in zip(reversed(pairs), reversed(places), strict=True):
        if place == len(ends) - 1 - len(found) and (not found or pair[1] <= found[-1][1]):
            found.append(pair)
    return found[::-1]


def in_order(mine: Sequence[Tensor], theirs: Sequence[Tensor], known: Anchors) -> list[Match]:
    """Return the matches that the order of calls gives.

    Args:
        known: of what is paired already.
    """
    found: list[Match] = []
    used: set[int] = set()
    for sides in (_modules(mine, theirs), _lists(mine, theirs, turned=False), _lists(theirs, mine, turned=True)):
        for ours, others in sides:
            free = [[group for group in side if not {id(t) for t in group} & used] for side in (ours, others)]
            for a, b in _aligned(free[0], free[1], known):
                matches = fitting(a, b, ORDER) if len(a) == len(b) else _listed(a, b)
                found += matches
                used |= {id(t) for match in matches for t in (*match.torch, *match.flax)}
    return found


def tensors_in_order(mine: Sequence[Tensor], theirs: Sequence[Tensor], known: Anchors) -> list[Match]:
    """Return the matches of single tensors of a role and size in the order of calls: of layers cut otherwise.

    Args:
        known: of what is paired already.
    """
    classes: list[dict[object, list[Group]]] = [defaultdict(list), defaultdict(list)]
    for side, tensors in zip(classes, (mine, theirs), strict=True):
        for tensor in tensors:
            side[tensor.role, tensor.value.size].append((tensor,))
    aligned = (_aligned(ours, classes[1].get(key, []), known) for key, ours in classes[0].items())
    return [match for pairs in aligned for a, b in pairs for match in _listed(a, b)]


def few_by_calls(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Match]:
    """Return the matches of the last tensors of a size in the order of calls, whatever is called before each.

    One model may compute the keys of an attention before its loop, the other inside. Computing confirms the order, or
    tries others (`pairing.ordering`).
    """
    counts = Counter((t.role, t.value.size) for t in mine)
    few = [[t for t in side if counts[t.role, t.value.size] <= MOST] for side in (mine, theirs)]
    return tensors_in_order(few[0], few[1], ())


def _listed(a: Group, b: Group) -> list[Match]:
    forms = fitting_forms(a, b)
    return [Match(a, b, forms, ORDER)] if forms else []


def _modules(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[tuple[list[Group], list[Group]]]:
    """Yield the modules of both models that hold tensors of the same sizes."""
    classes: list[dict[object, list[Group]]] = [defaultdict(list), defaultdict(list)]
    for side, tensors in zip(classes, (mine, theirs), strict=True):
        for some in by_module(tensors).values():
            side[tuple(sorted(t.value.size for t in some))].append(tuple(some))
    yield from ((ours, classes[1].get(key, [])) for key, ours in classes[0].items())


def _lists(
    listed: Sequence[Tensor], single: Sequence[Tensor], turned: bool
) -> Iterator[tuple[list[Group], list[Group]]]:
    """Yield lists of layers of one model, and single tensors of the other with as many numbers."""
    classes: list[dict[object, list[Group]]] = [defaultdict(list), defaultdict(list)]
    for group in lists(listed):
        classes[0][group[0].role, sum(t.value.size for t in group)].append(group)
    for tensor in single:
        classes[1][tensor.role, tensor.value.size].append((tensor,))
    for key, groups in classes[0].items():
        others = classes[1].get(key, [])
        yield (others, groups) if turned else (groups, others)


def _aligned(ours: Sequence[Group], others: Sequence[Group], known: Anchors) -> list[tuple[Group, Group]]:
    """Return the groups of both models in the order of their calls; none where that does not tell."""
    sides = [sorted(side, key=lambda group: group[0].rank) for side in (ours, others)]
    ranks = [[group[0].rank for group in side] for side in sides]
    distinct = all(len({*some}) == len(some) and NEVER not in some for some in ranks)
    if not distinct or len(ranks[0]) != len(ranks[1]):
        return []
    against = {
        (mine, other) for a, b in zip(*ranks, strict=True) for mine, other in known if (mine - a) * (other - b) < 0
    }
    # A table of positions may be looked up before the queries in one model and behind them in the other.
    return [*zip(*sides, strict=True)] if len(against) <= min(len(known) // FEW, len(ours) // FEW) else []


def fitting(ours: Sequence[Tensor], others: Sequence[Tensor], why: str) -> list[Match]:
    """Return the matches of two modules that have the same tensors; none where they have not."""
    return assigned([(t,) for t in ours], [(t,) for t in others], why) if len(ours) == len(others) else []
