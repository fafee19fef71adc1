"""Which form of a tensor is right, where several fit.

A tensor (width, width) may be transposed, and query, key and value may be fused in any order. Equal values say which
form it is where the port holds PyTorch's weights already, but for heads that each may have a part of a fused tensor:
there computing has to agree with no other form. Otherwise both models run with weights that hide nothing,
PyTorch's outputs handed on at every layer, and the form is taken with which the most agrees. A form that nothing tells
from another one is never taken where weights are moved: that is an error.

Inside of the module that holds a mistake no output agrees. There the right form is the one with which the port
computes most arrays that PyTorch computes, too, up to the mistake. The name of a fused tensor spells its parts' order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from parity.numerics.layouts import Tensors
from parity.pairing.likeness import starred
from parity.pairing.pairs import Choice, Pairing, View
from parity.pairing.trials import AGREES, Trial, nearest, sites
from ports.errors import UserError

ROUNDS = 3  # of all choices, each with what the others were set to
MARGIN = 2  # arrays more that the right way has in common with PyTorch
RUNS = 60  # of the port, where the likeliest form is good enough


def by_values(pairing: Pairing, own: Mapping[str, np.ndarray], state: Tensors) -> Pairing:
    """Return the pairing with the forms under which the port's values are PyTorch's; what stays open, open.

    Args:
        own: the port's tensors by their own names.
        state: PyTorch's.
    """
    expected = _expected(pairing, state)
    left: list[Choice] = []
    for choice in pairing.choices:
        equal = [way for way in choice.ways if _holds(pairing, choice, way, own, expected)]
        ways = tuple(equal) or choice.ways
        if equal and _woven(pairing, choice):  # whoever wrote the values may have split the heads wrongly
            ways = (*equal, *(way for way in choice.ways if way not in equal))
            choice = replace(choice, equal=tuple(equal))
        pairing = pairing.choosing(choice, ways[0])
        if len(ways) > 1:
            left.append(replace(choice, ways=ways))
    return pairing.reading(own).open(left)


def _woven(pairing: Pairing, choice: Choice) -> bool:
    """Whether each head may have its part of every tensor: split so or plainly, tensors have the same shapes."""
    return any(one.form.woven for several in choice.views for i in several for one in pairing.views[i].ways)


def _expected(pairing: Pairing, state: Tensors) -> list[list[np.ndarray]]:
    """Return PyTorch's tensors of each view."""
    arrays = {
        name: state[p.torch.tensors[leaf]]
        for p in pairing.pairs
        for leaf, name in p.flax.tensors.items()
        if leaf in p.torch.tensors
    }
    return [[arrays[name] for name in view.names] for view in pairing.views]


def _holds(
    pairing: Pairing,
    choice: Choice,
    way: Sequence[int],
    own: Mapping[str, np.ndarray],
    expected: Sequence[Sequence[np.ndarray]],
) -> bool:
    return all(
        _equal(pairing.views[i].choosing(chosen), own, expected[i])
        for several in choice.views
        for i, chosen in zip(several, way, strict=True)
    )


def _equal(view: View, own: Mapping[str, np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    values = view.read(own).values()
    return all(np.array_equal(array, other) for array, other in zip(values, expected, strict=True))


def by_computing(pairing: Pairing, trial: Trial, strict: bool) -> Pairing:
    """Return the pairing with the forms that computing tells.

    Args:
        strict: whether a form that nothing tells is an error; otherwise the likeliest is taken.

    Raises:
        UserError: a form that neither values nor computing tell.
    """
    left = [*pairing.choices]
    undecided: list[Choice] = []
    for _ in range(ROUNDS):
        undecided, before = [], pairing
        for choice in left:
            if not strict and trial.trials > RUNS:
                return pairing.open(())
            ways = _best(pairing, choice, trial)
            pairing = pairing.choosing(choice, ways[0])
            if len(ways) > 1:
                undecided.append(replace(choice, ways=ways))
        if not undecided or pairing == before:
            break
    if undecided and strict:
        raise UserError(unsettled(pairing, undecided[0]))
    return pairing.open(())


def _best(pairing: Pairing, choice: Choice, trial: Trial) -> tuple[tuple[int, ...], ...]:
    """Return the way with which the most agrees; several, the likeliest first, where nothing tells one."""
    likeliest = choice.ways[0]
    if trial.plain(pairing.choosing(choice, likeliest)) <= AGREES:
        return (likeliest,)
    alike = _summed_alike(pairing, choice, trial)
    for way in (*alike, *(way for way in choice.ways if way not in alike)):
        if way != likeliest and trial.plain(pairing.choosing(choice, way)) <= AGREES:
            return (way,)
    if choice.equal:
        return choice.equal
    if len(alike) == 1:
        return alike
    choice = replace(choice, ways=alike)
    # A mistake in front of a module that holds these tensors reaches them, unless the module gets PyTorch's input.
    for around in (False, True):
        found = [sites(pairing.choosing(choice, way), trial, alone=True, around=around) for way in choice.ways]
        agreeing = [sum(far <= AGREES for far, _ in one.values()) for one in found]
        best = [i for i, count in enumerate(agreeing) if count == max(agreeing)]
        # Behind a mistake no way agrees, and the right one is by far the nearest.
        told = best[0] if len(best) == 1 else nearest(found)
        if told is not None:
            return (choice.ways[told],)
    lengths = {pairing.views[i].count for several in choice.views for i in several}
    counts = [trial.common(pairing.choosing(choice, way), lengths) for way in choice.ways]
    return tuple(choice.ways[i] for i in _computing_alike(choice, counts))


def _summed_alike(pairing: Pairing, choice: Choice, trial: Trial) -> tuple[tuple[int, ...], ...]:
    """Return the ways under which the models sum the most of the tensors' numbers together with the same others.

    The layers of a choice are alike, so the first one tells.
    """
    first = choice.views[0]
    wanted = {name for i in first for name in pairing.views[i].names}
    ours = [p.torch.tensors["value"] for p in pairing.pairs if wanted & {*p.flax.tensors.values()}]
    ways = choice.ways
    counts = trial.contracting([pairing.choosing(choice, way) for way in ways], ours)
    for one in range(3):  # what is multiplied itself, then also what is computed from it, then what comes after what
        most = max(some[one] for some in counts)
        ways, counts = zip(*(two for two in zip(ways, counts, strict=True) if two[1][one] == most), strict=True)
    return ways


def _computing_alike(choice: Choice, counts: Sequence[int]) -> list[int]:
    """Return the way with which the port computes most of what PyTorch does; of several, the one that names spell.

    Args:
        counts: of arrays that both models compute, for each way.
    """
    most = [i for i, count in enumerate(counts) if count == max(counts)]
    spelled = [i for i in most if choice.ways[i] in choice.spelled]
    if len(most) > 1:
        return spelled if len(spelled) == 1 else most
    margin = max(counts) - max(count for count in counts if count < max(counts))
    return most if margin >= MARGIN or spelled else [*most, *(i for i in range(len(counts)) if i not in most)]


def rivals(pairing: Pairing, choices: Sequence[Choice]) -> list[tuple[Choice, tuple[int, ...]]]:
    """Return the ways of choices in which other tensors of the port hold PyTorch's than in a pairing."""
    now = {name: view.held for view in pairing.views for name in view.names}
    return [
        (choice, way)
        for choice in choices
        for way in choice.ways
        if any(
            pairing.views[i].choosing(chosen).held != now[pairing.views[i].names[0]]
            for i, chosen in zip(choice.views[0], way, strict=True)
        )
    ]


def unsettled(pairing: Pairing, choice: Choice) -> str:
    """Return the error for a choice that nothing settles, with the entry of `names` that would."""
    torch_names = {
        name: p.torch.tensors["value"] for p in pairing.pairs for name in p.flax.tensors.values() if p.torch.leaf
    }
    kinds = [[pairing.views[layer[n]] for layer in choice.views] for n in range(len(choice.views[0]))]
    held = [{some[0].ways[way[n]].held for way in choice.ways} for n, some in enumerate(kinds)]
    if others := [some for n, some in enumerate(kinds) if len(held[n]) > 1]:
        return _which(others, torch_names)
    view = next(some[0] for n, some in enumerate(kinds) if len({way[n] for way in choice.ways}) > 1)
    n = next(n for n, some in enumerate(kinds) if some[0] is view)
    forms = [str(view.ways[i].form) for i in dict.fromkeys(way[n] for way in choice.ways)]
    ours = [torch_names[name] for name in view.names]
    entry = f"{' + '.join(ours)!r}: {' + '.join(view.held) + ': ' + forms[0]!r}"
    said = "; ".join(itertools.islice(forms, 4))
    return (
        f"{', '.join(view.held)}: {len(forms)} forms of PyTorch's {', '.join(ours)} fit ({said}), and neither values "
        f"nor computing tell which is right; say it with names={{{entry}}}; nothing was written"
    )


def _which(kinds: Sequence[Sequence[View]], torch_names: Mapping[str, str]) -> str:
    """The error for tensors that could be one another's."""
    ours = [starred([torch_names[name] for view in views for name in view.names]) for views in kinds]
    theirs = [starred([name for view in views for name in view.held]) for views in kinds]
    said = ", ".join(f"{a!r}: {b!r}" for a, b in zip(ours[:-1] or ours, theirs, strict=False))
    return (
        f"PyTorch's {', '.join(ours)} and the port's {', '.join(theirs)} hold as many numbers each, and neither values "
        f"nor computing tell which is which; say it with names={{{said}}}, or in another order; nothing was written"
    )
