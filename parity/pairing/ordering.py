"""Whether layers were paired rightly: decided by what both models compute.

A name is a hint, and so are a shape and the order of calls: fc1 of one model is fc0 of another, and the query of an
attention may be called first or last. So both models run, with weights that hide nothing.

First a proof is looked for. The Flax model runs with PyTorch's outputs handed on where a layer got what its counterpart
gets in PyTorch. A layer that gets what another one gets is paired with that one. Layers that all get the same (the
query and the key of an attention, two towers) are exchanged, and so are parameters whose use is not seen. Where both
models give the same outputs, and these outputs would be others if two layers were exchanged, the pairing is right.

Where the outputs differ whatever is tried, the port holds a mistake, and each place is judged on its own: PyTorch's
outputs are handed on at every layer, and the inputs of two layers, what comes of them, or the modules that they stand
in say which is which. What is left are parts of one module, such as a key and a value: their names in it may tell.

What nothing of this tells is an error, never a guess. So is a name that another layer has in the other model. Where
both models have the same names and use them otherwise, the port holds that mistake: equal names win, and the check
names it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Probe
from parity.pairing.likeness import CLOSE, Token, best, part_similarity, tokens
from parity.pairing.pairs import COMPUTED, NAMES, PREFIXED, SIMILAR, VALUES, Pair, Pairing
from parity.pairing.trials import (
    AGREES,
    NOISE,
    NOWHERE,
    TOLD,
    Build,
    Run,
    Trial,
    Unit,
    distance,
    exchanged,
    moving,
    nearest,
    sites,
    units,
)
from parity.running import inventory
from ports.errors import UserError

PART = 0.05  # of a site's numbers that must agree, where all ways are far off
SEARCHED, CONTRARY = 300, 60  # runs of a search for a proof; of one that goes against names
LEAVES = 30  # pairs of parameters of one module that are tried the other way round
TOGETHER = 6  # pairs that one message names
SIDES = "torch", "flax"
MOST = 4  # layers that are tried in every order; of more, two at a time are exchanged

Free = Callable[[Pair], bool]


def settled(pairing: Pairing, build: Build, reference: torch.nn.Module, fed: Probe) -> Pairing:
    """Return the pairing, with layers exchanged where computing says so.

    Raises:
        UserError: two layers that neither their inputs nor what comes of them tells apart; layers whose names say one
            thing and whose use says another.
    """
    told = all(_named(p) or not _possible(p) for p in pairing.pairs)
    if told or not (_twins(units(pairing, _possible)) or _leaves(pairing)):
        return pairing
    trial = Trial(build, reference, fed)
    best = _searched(pairing, trial, _unnamed)
    if best.agrees:
        return _told(best, trial)
    other = _searched(pairing, trial, _possible)
    changed = [(p, q) for p, q in zip(pairing.pairs, other.pairing.pairs, strict=True) if p.flax.name != q.flax.name]
    if other.agrees and not all(_named(p) for p, _ in changed):
        raise UserError(_contradicted(changed))
    pairing = _by_parts(best.pairing, trial)
    _agreeing(pairing, trial)
    return pairing


def exchanges_layers(pairing: Pairing, other: Pairing) -> bool:
    """Return whether two pairings have other layers of the port for some layer of PyTorch's."""
    return any(p.flax.name != q.flax.name for p, q in zip(pairing.pairs, other.pairs, strict=True) if not p.torch.leaf)


def _possible(p: Pair) -> bool:
    """Whether anything could be exchanged with it: it was not given by the caller, and not found by its values."""
    return not p.why.startswith("given") and p.why != VALUES


def _unnamed(p: Pair) -> bool:
    """Whether something else than a name says what it is."""
    return _possible(p) and p.why != NAMES


def _unlike(p: Pair) -> bool:
    """Whether names say nothing of what it is, where computing does not either."""
    return _unnamed(p) and p.why not in (PREFIXED, SIMILAR, COMPUTED)


def _named(p: Pair) -> bool:
    """Whether the names of both say that they are one: of a module's own parameters those within the module."""
    return p.why == NAMES or bool(p.torch.mark and p.torch.mark == p.flax.mark)


def _twins(some: Iterable[Unit]) -> list[tuple[Unit, Unit]]:
    """Units that could be exchanged without any shape telling."""
    pairs = itertools.combinations(some, 2)
    return [(a, b) for a, b in pairs if a.signature == b.signature and a.content != b.content]


def _searched(pairing: Pairing, trial: Trial, free: Free) -> Run:
    """Return the run in which the most agrees.

    Units that get the same input are exchanged, and so are those whose use is not seen.
    """
    last = trial.trials + (CONTRARY if free is _possible else SEARCHED)
    best, before = trial.follow(pairing, free), None
    while not best.agrees and best is not before:
        before = best
        for group in _open(best.pairing, trial, free):
            if best.agrees or not best.reaches(group):
                continue
            for way in _ways(best.pairing, [unit.under(best.pairing) for unit in group]):
                if trial.trials >= last:
                    return best
                tried = trial.follow(way, free)
                best = tried if tried.score > best.score else best
    return best


def _open(pairing: Pairing, trial: Trial, free: Free) -> list[list[Unit]]:
    """Units that may have to be exchanged, since their inputs do not tell them apart."""
    modules = Counter(unit.torch for unit in units(pairing, lambda _: True))
    # The input of a module whose parameters stand in several modules of Flax's says nothing of them.
    scattered = {name for name, count in modules.items() if count > 1}
    twins = _twins(units(pairing, free))
    found = _groups(two for two in twins if trial.alike(*two) or scattered & {u.torch for u in two})
    if free is _possible:  # contrary to their names, which is wanted only where one has none
        found += map(list, _units(_leaves(pairing)[:LEAVES]))
        found = [group for group in found if not all(_named(p) for unit in group for p in unit.pairs)]
    return found


def _ways(pairing: Pairing, group: list[Unit]) -> Iterator[Pairing]:
    """The pairing with the units of a group in other orders: all, or of many units those of two exchanged."""
    if len(group) <= MOST:
        yield from (exchanged(pairing, group, order) for order in itertools.permutations(group) if [*order] != group)
        return
    for two in itertools.combinations(group, 2):
        yield exchanged(pairing, two, two[::-1])


def _told(run: Run, trial: Trial) -> Pairing:
    """Return the pairing of a run whose outputs agree; where they agree as well with two units exchanged, by names.

    Raises:
        UserError: two such units that names do not tell apart either.
    """
    pairing = run.pairing
    named = {p.torch.name for p in pairing.pairs if not _unnamed(p)}
    twins = _twins(units(pairing, _possible))
    open_ = [twin for twin in twins if not ({u.torch for u in twin} <= run.seen) or trial.alike(*twin)]
    for group in _groups(open_):
        group = [unit for unit in group if not {p.torch.name for p in unit.pairs} <= named]
        pairing = _not_exchangeable(pairing, group, run, trial)
    alone = [two for two in _leaves(pairing) if not any(map(_named, two))]  # of two, one name tells both
    for group in _groups(_units(alone)):
        pairing = _not_exchangeable(pairing, group, run, trial)
    return pairing


def _not_exchangeable(pairing: Pairing, group: list[Unit], run: Run, trial: Trial) -> Pairing:
    """Return the pairing with a group in the order of its names, where two could be exchanged without any effect.

    So it is with parameters of which only the sum is used.
    """
    two = trial.exchangeable(group, max(NOISE, TOLD * run.distance)) if len(group) > 1 else None
    if two is None:
        return pairing
    if (order := _told_by_names(group)) is None and (order := _likeliest(group)) is None:
        raise UserError(_undecided(two))
    tried = exchanged(pairing, group, order)
    if trial.plain(tried) > AGREES:
        raise UserError(_undecided(two))
    return tried


def _contradicted(pairs: list[tuple[Pair, Pair]]) -> str:
    """The error for layers that computing pairs otherwise than their names."""
    more = f", and {len(pairs) - TOGETHER} more" if len(pairs) > TOGETHER else ""
    said = ", ".join(f"{p.torch.name} = {p.flax.name}" for p, _ in pairs[:TOGETHER])
    kept, other = (
        ", ".join(f"{p.torch.name!r}: {q.flax.name!r}" for p, q in some[:TOGETHER]) + ", …" * bool(more)
        for some in ([(p, p) for p, _ in pairs], pairs)
    )
    return (
        f"{said}{more}: their names say so, but the models agree only if these are exchanged; say which is right: "
        f"names={{{other}}} exchanges them, names={{{kept}}} keeps them; nothing was written"
    )


def _by_parts(pairing: Pairing, trial: Trial) -> Pairing:
    """Return the pairing with each place judged on its own, PyTorch's outputs handed on at every layer.

    Raises:
        UserError: two layers that neither their inputs nor what comes of them tells apart.
    """
    twins = _twins(units(pairing, _unlike))
    # First those that get the same input: what comes of them is the input of others.
    siblings = [twin for twin in twins if trial.alike(*twin)]
    for group in _groups(siblings):
        pairing = _decided(pairing, group, trial)
    if others := [twin for twin in twins if twin not in siblings]:
        tap, _ = trial.taken(pairing)
        inputs = {name: np.asarray(x) for name, x in tap.inputs.items()}
        for group in _groups([twin for twin in others if not _arrives(*twin, inputs, trial.given)]):
            pairing = _decided(pairing, group, trial)
    return pairing


def _sure(pairing: Pairing, trial: Trial) -> set[tuple[str, ...]]:
    """Return the keys of units that have their own counterpart: by name, by a shape of their own, or by their input.

    Such an input is that of the counterpart, and of no other unit of these shapes.
    """
    inputs = trial.taken(pairing)[0].inputs
    unsure = {
        unit.key
        for a, b in _twins(units(pairing, _unlike))
        for unit in (a, b)
        if unit.torch not in inputs
        or unit.torch not in trial.given
        or distance(np.asarray(inputs[unit.torch]), trial.given[unit.torch]) > AGREES
        or trial.alike(a, b)
    }
    return {unit.key for unit in units(pairing, lambda _: True)} - unsure


def _told_by_modules(pairing: Pairing, group: list[Unit], trial: Trial) -> bool:
    """Return whether the modules around some units say that each was paired with its own counterpart.

    The other units in these modules are sure. What comes of the group says nothing here, because PyTorch's outputs are
    handed on: a unit behind the group is not sure if another order gives it another input.
    """
    orders = [*itertools.permutations(group)]
    found = [_sure(exchanged(pairing, group, order), trial) for order in orders]
    keys = set[tuple[str, ...]].intersection(*found)
    sure = [unit for unit in units(pairing, lambda _: True) if unit.key in keys]
    fixed = {
        unit.key
        for i, unit in enumerate(group)
        if all(unit.key in some for order, some in zip(orders, found, strict=True) if order[i] is unit)
    }
    twos = itertools.combinations(group, 2)
    return all({a.key, b.key} & fixed or _housed(a, b, sure) for a, b in twos)


def _housed(a: Unit, b: Unit, sure: Sequence[Unit]) -> bool:
    """Return whether the modules around two units say that each was paired with its own counterpart.

    They do if a module of each model holds one unit without the other, and both modules hold the same sure units.
    """
    others = [unit for unit in sure if unit.key not in (a.key, b.key)]
    for mine, other in ((a, b), (b, a)):
        ours = _held(mine.torch, other.torch, [unit.torch for unit in others])
        theirs = _held(mine.flax, other.flax, [unit.flax for unit in others])
        if ours & theirs:
            return True
    return False


def _held(mine: str, other: str, names: Sequence[str]) -> set[frozenset[int]]:
    """Return which of some units each module holds that is around one unit and not around another one."""
    parts = mine.split(".")
    modules = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    around = [module for module in modules if not f"{other}.".startswith(f"{module}.")]
    held = (frozenset(i for i, name in enumerate(names) if f"{name}.".startswith(f"{m}.")) for m in around)
    return {some for some in held if some}


def _arrives(a: Unit, b: Unit, inputs: Tensors, given: Tensors) -> bool:
    """Return whether the inputs of two layers say that each was paired with its own counterpart."""
    mine, other = (inventory.module_of(u.torch) for u in (a, b))
    if not all(name in side for name in (mine, other) for side in (inputs, given)):
        return False
    right = max(distance(inputs[mine], given[mine]), distance(inputs[other], given[other]))
    wrong = min(distance(inputs[other], given[mine]), distance(inputs[mine], given[other]))
    return right * TOLD < wrong


def _leaves(pairing: Pairing) -> list[tuple[Pair, Pair]]:
    """Two parameters of one module that could be exchanged."""
    own = [p for p in pairing.pairs if p.torch.leaf and not p.why.startswith("given")]
    return [
        (a, b)
        for a, b in itertools.combinations(own, 2)
        if (a.torch.owner, a.flax.owner, a.torch.values["value"].shape)
        == (b.torch.owner, b.flax.owner, b.torch.values["value"].shape)
        and not np.array_equal(a.torch.values["value"], b.torch.values["value"])
    ]


def _units(leaves: Iterable[tuple[Pair, Pair]]) -> list[tuple[Unit, Unit]]:
    """Parameters of a module, each as a unit of its own."""
    single = {p.torch.name: Unit(p.torch.name, p.flax.name, (p,)) for two in leaves for p in two}
    return [(single[a.torch.name], single[b.torch.name]) for a, b in leaves]


def _agreeing(pairing: Pairing, trial: Trial) -> None:
    """Raise where the models agree only if two parameters of a module are exchanged."""
    leaves = [two for two in _leaves(pairing) if not all(map(_named, two))]
    here = sites(pairing, trial) if leaves else {}
    for a, b in leaves:
        new = {a.torch.name: replace(a, flax=b.flax), b.torch.name: replace(b, flax=a.flax)}
        there = sites(replace(pairing, pairs=tuple(new.get(p.torch.name, p) for p in pairing.pairs)), trial)
        told = [site for site in here if here[site] != there.get(site)]
        if told and max(there.get(s, NOWHERE)[0] for s in told) * TOLD < max(here[s][0] for s in told):
            raise UserError(
                f"{a} and {b}: their names say so, but the models agree only if the two are exchanged; if the names "
                f"are right, say so with names={{{a.torch.name!r}: {a.flax.name!r}}}; nothing was written"
            )


def _groups(twins: Iterable[tuple[Unit, Unit]]) -> list[list[Unit]]:
    """Units that are to be told apart, those together that hang together."""
    groups: list[dict[tuple[str, ...], Unit]] = []
    for a, b in twins:
        joined = {a.key: a, b.key: b}
        for group in [group for group in groups if joined.keys() & group.keys()]:
            joined = group | joined
            groups.remove(group)
        groups.append(joined)
    return [list(group.values()) for group in groups]


def _decided(pairing: Pairing, group: list[Unit], trial: Trial) -> Pairing:
    """The pairing with the units of a group in the one order that computing accepts."""
    if len(group) > MOST:
        for two in itertools.combinations(group, 2):
            pairing = _decided(pairing, list(two), trial)
        return pairing
    group = [unit.under(pairing) for unit in group]
    if len(several := _by_module(group)) > 1:  # of a list of modules the first is the first
        for some in several:
            pairing = _decided(pairing, some, trial) if len(some) > 1 else pairing
        return pairing
    # What stands behind an exchanged layer follows it: of two chains that are exchanged neither looks wrong by itself.
    ways = [
        trial.follow(exchanged(pairing, group, order), _unnamed, always=True).pairing
        for order in itertools.permutations(group)
    ]
    found = [sites(way, trial) for way in ways]
    if (first := nearest(found)) is not None:
        return ways[first]
    # Behind a mistake every way is far off; the right one may still agree in a part, such as one direction of two.
    if (first := _alike_in_part(found)) is not None:
        return ways[first]
    # What each tensor is multiplied with is computed from the same tensors, whatever is wrong on the way.
    different = {tuple(p.flax.name for p in way.pairs): way for way in ways}
    counts = trial.depending([*different.values()])
    if counts.count(max(counts)) == 1:
        return [*different.values()][counts.index(max(counts))]
    if _told_by_modules(pairing, group, trial):
        return pairing
    if (order := _told_by_names(group)) is not None:
        return exchanged(pairing, group, order)
    raise UserError(_undecided(group))


def _alike_in_part(found: Sequence[Mapping[str, tuple[float, float]]]) -> int | None:
    """Return the way of which by far the most agrees with PyTorch where it differs from each other way, or None.

    Args:
        found: the `sites` of each way.
    """
    told = moving(found)
    parts = [[way.get(site, NOWHERE)[1] for site in told] for way in found]
    first = max(range(len(parts)), key=lambda i: sum(parts[i]))
    for other in (some for i, some in enumerate(parts) if i != first):
        differing = [(mine, theirs) for mine, theirs in zip(parts[first], other, strict=True) if mine != theirs]
        most, rest = (sum(some) for some in zip(*differing, strict=True)) if differing else (0.0, 0.0)
        if most < PART or rest * TOLD >= most:
            return None
    return first


def _told_by_names(group: list[Unit]) -> list[Unit] | None:
    """Return parts of one module in the order that their names in it say, apart from numbers; None if they do not."""
    mine, theirs = [unit.torch for unit in group], [unit.flax for unit in group]
    if any(len({name.rpartition(".")[0] for name in names}) > 1 for names in (mine, theirs)):
        return None
    said = {name: _words_only(name.rpartition(".")[2]) for name in (*mine, *theirs)}
    alike = dict(best(mine, theirs, lambda a, b: part_similarity(said[a], said[b])))
    by_name = {unit.flax: unit for unit in group}
    return [by_name[alike[unit.torch]] for unit in group] if len(alike) == len(by_name) == len(group) else None


def _by_module(group: list[Unit]) -> list[list[Unit]]:
    """Return units by the modules that they stand in, which are numbered alike in both models; else an empty list."""
    sides = [sorted({getattr(u, side).rpartition(".")[0] for u in group}, key=_numbers) for side in SIDES]
    if any(len({re.sub(r"\d+", "*", name) for name in names}) > 1 for names in sides) or len(sides[0]) != len(sides[1]):
        return []
    place = [{name: i for i, name in enumerate(names)} for names in sides]
    units_of = [[u for u in group if place[0][u.torch.rpartition(".")[0]] == i] for i in range(len(sides[0]))]
    alike = all(place[1][u.flax.rpartition(".")[0]] == i for i, some in enumerate(units_of) for u in some)
    return units_of if alike else []


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _likeliest(group: list[Unit]) -> list[Unit] | None:
    """Return parts of one module in the one order in which their names are most alike in total, or None."""
    if len(group) > MOST or any(len({getattr(u, side).rpartition(".")[0] for u in group}) > 1 for side in SIDES):
        return None
    mine, theirs = ([_words_only(getattr(unit, side).rpartition(".")[2]) for unit in group] for side in SIDES)
    scores = {
        order: sum(part_similarity(mine[i], theirs[j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(len(group)))
    }
    first, *others = sorted(scores, key=lambda order: scores[order], reverse=True)
    return [group[i] for i in first] if scores[others[0]] < scores[first] - CLOSE else None


def _words_only(name: str) -> list[Token]:
    return [token for token in tokens([name])[name] if isinstance(token, str)]


def _undecided(group: Iterable[Unit]) -> str:
    pairs = ", ".join(f"{u.torch!r}: {u.flax!r}" for u in group)
    mine, theirs = (", ".join(getattr(u, side) for u in group) for side in ("torch", "flax"))
    return (
        f"PyTorch's {mine} have the same shapes as Flax's {theirs}; only the order of calls says which is which, and "
        f"computing does not decide it. Say it with names={{{pairs}}}, or in another order; nothing was written"
    )
