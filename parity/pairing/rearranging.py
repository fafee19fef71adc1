"""Pair tensors that the two models hold in other forms.

A library's layer and a class of the user's own, one projection of query, key and value and three, a list of experts and
one array of them, (width, width) and (width, heads, depth): their layers cannot be paired as they are, their tensors
can. Each tensor of the port is a rearrangement of one or several of PyTorch's (`ports.weights.form.rearrangement`).

Candidates come from shapes; names, values and the order of calls say which of them are meant. Where several forms of
the same tensors fit, `pairing.choosing` computes which is right.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from parity.pairing.assigning import inside, left_alike, left_rivals, one_level_up
from parity.pairing.forms import fitting_forms
from parity.pairing.groups import SHAPES, doubted, groups, sole_tensors, unnamed_groups
from parity.pairing.in_order import anchors, by_module, few_by_calls, fitting, in_order, tensors_in_order
from parity.pairing.likeness import STATISTICS, best, differ_in_numbers, module_similarity
from parity.pairing.pairs import NAMES, SIMILAR, VALUES, Choice, Holding, Pair, View
from parity.pairing.tensors import Match, Tensor, tensors_of
from parity.running.inventory import OWN
from parity.running.model_layers import ModelLayer, normal_name

WAYS = 96  # ways that are tried of one choice
RIVALS = 4  # forms of a tensor in each variable that may be it


@dataclass(frozen=True)
class Found:
    """What was paired of what was left."""

    pairs: tuple[Pair, ...]
    views: tuple[View, ...]
    choices: tuple[Choice, ...]


def rest(
    left: dict[str, ModelLayer],
    right: dict[str, ModelLayer],
    given: Sequence[Match] = (),
    paired: Sequence[Pair] = (),
    confirmed: bool = False,
) -> Found:
    """Pair what is left tensor by tensor; take the layers away whose tensors are all paired.

    Args:
        given: what the caller says.
        paired: the layers that are paired already.
        confirmed: whether computing confirms what only a loose order of calls says.
    """
    matches = [*given]
    named = {(t.layer.name, t.leaf) for match in given for t in (*match.torch, *match.flax)}
    mine, theirs = (
        [t for t in tensors_of(side.values()) if (t.layer.name, t.leaf) not in named] for side in (left, right)
    )
    used = [[t for t in side if t.layer.trained and t.layer.rank is not None] for side in (mine, theirs)]

    def by_calls(ours: Sequence[Tensor], others: Sequence[Tensor]) -> list[Match]:
        return in_order(ours, others, anchors(paired, matches))

    def single_by_calls(ours: Sequence[Tensor], others: Sequence[Tensor]) -> list[Match]:
        return tensors_in_order(ours, others, anchors(paired, matches))

    for more in (_modules, by_calls):
        norms = [_with_statistics(_left(side, matches)) for side in (mine, theirs)]
        matches.extend(more(norms[0], norms[1]))
    by_names = (_modules, groups, _modules, by_calls, groups, _modules, inside, one_level_up, _modules)
    for more in (
        *by_names,
        sole_tensors,
        single_by_calls,
        unnamed_groups,
        _modules,
        by_calls,
        single_by_calls,
        left_alike,
        left_rivals,
        unnamed_groups,
        *([few_by_calls] if confirmed else []),
    ):
        matches.extend(more(_left(used[0], matches), _left(used[1], matches)))
    # A table of one model may be a parameter of the other: their names say so, or their values.
    matches += _modules(_left(mine, matches), _left(theirs, matches), certain=True)
    matches = _whole(doubted(matches), left.values(), right.values())
    for side, taken in ((left, [t for m in matches for t in m.torch]), (right, [t for m in matches for t in m.flax])):
        for name in {t.layer.name for t in taken}:
            del side[name]
    return record(matches)


def _with_statistics(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of modules with statistics: of norms that average over batches."""
    modules = {t.module for t in tensors if t.role in STATISTICS}
    return [t for t in tensors if t.module in modules]


def _left(tensors: Sequence[Tensor], matches: Sequence[Match]) -> list[Tensor]:
    """Return the tensors that no match has."""
    used = {id(t) for match in matches for t in (*match.torch, *match.flax)}
    return [t for t in tensors if id(t) not in used]


def _whole(matches: list[Match], mine: Iterable[ModelLayer], theirs: Iterable[ModelLayer]) -> list[Match]:
    """Return the matches without those of layers of which a tensor is left."""
    while True:
        used = {(id(t.layer), t.leaf) for match in matches for t in (*match.torch, *match.flax)}
        partly = {id(t.layer) for t in tensors_of((*mine, *theirs)) if (id(t.layer), t.leaf) not in used}
        kept = [m for m in matches if not any(id(t.layer) in partly for t in (*m.torch, *m.flax))]
        if len(kept) == len(matches):
            return matches
        matches = kept


def record(matches: Sequence[Match]) -> Found:
    """Return pairs, views and choices of the matches."""
    pairs, views = [], []
    for match in matches:
        view = View(len(match.torch), tuple(_ways(match)))
        views.append(view)
        values = view.read({t.full: t.value for t in match.flax})
        for tensor, label, name in zip(match.torch, view.layers, view.names, strict=True):
            first = match.flax[0]
            mark = _mark(tensor, first)
            torch = ModelLayer(tensor.full, OWN, {"value": tensor.full}, {"value": tensor.value}, tensor.rank)
            flax = ModelLayer(label, OWN, {"value": name}, {"value": values[name]})
            torch.owner, torch.leaf, torch.owner_rank, torch.mark = tensor.module, tensor.last, tensor.rank, mark
            flax.owner, flax.leaf, flax.owner_rank, flax.mark = first.module, first.last, first.rank, mark
            flax.rank, torch.trained, flax.trained = first.rank, tensor.layer.trained, first.layer.trained
            torch.placed, flax.placed = tensor.layer.placed, first.layer.placed
            pairs.append(Pair(torch, flax, match.why))
    return Found(tuple(pairs), tuple(views), tuple(_choices(matches, views)))


def _ways(match: Match) -> Iterator[Holding]:
    """Yield the ways in which the port may hold the tensors of a match, the likeliest first."""
    for i, form in enumerate(match.forms):
        told = (
            match.spelled and [*form.order] == sorted(form.order) if form.order else not match.rivals or match.spelled
        )
        yield Holding(tuple(t.full for t in match.flax), form, i, told and (form.layout.plain or not match.plainly))
    for other in match.rivals:
        if other != match.flax:
            forms = fitting_forms(match.torch, other)[:RIVALS]
            yield from (Holding(tuple(t.full for t in other), form, i + 1, False) for i, form in enumerate(forms))


def _mark(a: Tensor, b: Tensor) -> str:
    """Return what the names of two tensors within their modules both say; an empty text where they say other things."""
    same = normal_name(a.last)
    if same == normal_name(b.last):
        return same
    return a.role if a.role == b.role and a.role in STATISTICS else ""


def _choices(matches: Sequence[Match], views: Sequence[View]) -> Iterator[Choice]:
    """Yield what is open: which form of the tensors of a kind of layer is right."""
    layers: dict[object, list[int]] = defaultdict(list)
    for i, match in enumerate(matches):
        modules = frozenset(t.module for t in match.torch), frozenset(t.module for t in match.flax)
        layers[frozenset(t.full for some in match.rivals for t in some) or modules].append(i)
    kinds: dict[object, list[tuple[int, ...]]] = defaultdict(list)
    for several in layers.values():
        open_ = tuple(i for i in several if len(views[i].ways) > 1)
        if open_:
            key = tuple((_pattern(t.full for t in matches[i].torch), _patterns(views[i])) for i in open_)
            kinds[key].append(open_)
    for alike in kinds.values():
        ways = [views[i].ways for i in alike[0]]
        found = sorted(_together(ways), key=lambda way: sum(ways[n][i].rank for n, i in enumerate(way)))
        spelled = (way for way in found if all(ways[n][i].spelled for n, i in enumerate(way)))
        yield Choice(tuple(alike), tuple(found[:WAYS]), frozenset(spelled))


def _together(ways: Sequence[Sequence[Holding]]) -> Iterator[tuple[int, ...]]:
    """Yield which ways of several views go together: no variable is two, and fused parts have one order."""
    for way in itertools.product(*(range(len(some)) for some in ways)):
        some = [ways[n][i] for n, i in enumerate(way)]
        if len({one.held for one in some}) == len(some) and len({one.form.order for one in some} - {()}) <= 1:
            yield way


def _pattern(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\d+", "*", name) for name in names)


def _patterns(view: View) -> tuple[object, ...]:
    return tuple((_pattern(way.held), way.form) for way in view.ways)


# --- one tensor of PyTorch's, one of the port's: module by module


def _modules(mine: Sequence[Tensor], theirs: Sequence[Tensor], certain: bool = False) -> list[Match]:
    """Return the matches of modules.

    Args:
        certain: by equal names and values alone.
    """
    left, right = by_module(mine), by_module(theirs)
    found: list[Match] = []

    def take(ours: str, other: str, matches: list[Match]) -> None:
        found.extend(matches)
        del left[ours], right[other]

    for ours in [*left]:
        same = [other for other in right if normal_name(other) == normal_name(ours)]
        if len(same) == 1 and (matches := fitting(left[ours], right[same[0]], NAMES)):
            take(ours, same[0], matches)
    content = [{name: _numbers(some) for name, some in side.items()} for side in (left, right)]
    for ours in [*left]:
        same = [other for other in right if content[0][ours] and content[1][other] == content[0][ours]]
        sole = len(same) == 1 and [*content[0].values()].count(content[0][ours]) == 1
        if sole and (matches := fitting(left[ours], right[same[0]], VALUES)):
            take(ours, same[0], matches)
    if certain:
        return found
    for ours, other in best([*left], [*right], lambda a, b: _module_score(a, b, left, right)):
        take(ours, other, fitting(left[ours], right[other], SIMILAR))
    _sole(left, right, take)
    return found


def _module_score(ours: str, other: str, left: dict[str, list[Tensor]], right: dict[str, list[Tensor]]) -> float:
    mine, theirs = left[ours], right[other]
    if sorted(t.value.size for t in mine) != sorted(t.value.size for t in theirs):
        return 0.0
    alike = module_similarity(mine[0].module_tokens, theirs[0].module_tokens)
    return alike if alike and fitting(mine, theirs, "") else 0.0


def _numbers(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return what all orders of a module's numbers have in common; nothing of numbers that are all equal."""
    return tuple(sorted(t.content for t in tensors if t.content))


Take = Callable[[str, str, list[Match]], None]


def _sole(left: dict[str, list[Tensor]], right: dict[str, list[Tensor]], take: Take) -> None:
    """Pair the only two modules left whose tensors have these sizes."""
    sizes = [{name: tuple(sorted(t.value.size for t in some)) for name, some in side.items()} for side in (left, right)]
    counts = [Counter(side.values()) for side in sizes]
    for ours, size in sizes[0].items():
        others = [other for other, its in sizes[1].items() if its == size and other in right]
        sole = len(others) == 1 and counts[0][size] == counts[1][size] == 1
        if (
            sole
            and not differ_in_numbers(ours, others[0])
            and (matches := fitting(left[ours], right[others[0]], SHAPES))
        ):
            take(ours, others[0], matches)
