"""Which form of a tensor is right, where several fit.

A tensor (width, width) may be transposed, and query, key and value may be fused in any order. Equal values say which
form it is where the port holds PyTorch's weights already. Otherwise both models run with weights that hide nothing,
PyTorch's outputs handed on at every layer, and the form is taken with which the most agrees. A form that nothing tells
from another one is never taken where weights are moved: that is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from parity.numerics.layouts import Tensors
from parity.pairing.pairs import Choice, Pairing, View
from parity.pairing.trials import AGREES, Trial, nearest, sites
from ports.errors import UserError

ROUNDS = 3  # of all choices, each with what the others were set to
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
        pairing = pairing.choosing(choice, ways[0])
        if len(ways) > 1:
            left.append(Choice(choice.views, ways))
    return pairing.reading(own).open(left)


def _expected(pairing: Pairing, state: Tensors) -> dict[str, np.ndarray]:
    """Return PyTorch's tensors by the names that views give them."""
    return {
        name: state[p.torch.tensors[leaf]]
        for p in pairing.pairs
        for leaf, name in p.flax.tensors.items()
        if leaf in p.torch.tensors
    }


def _holds(
    pairing: Pairing, choice: Choice, way: Sequence[int], own: Mapping[str, np.ndarray], expected: Tensors
) -> bool:
    return all(
        _equal(pairing.views[i], form, own, expected)
        for several in choice.views
        for i, form in zip(several, way, strict=True)
    )


def _equal(view: View, form: int, own: Mapping[str, np.ndarray], expected: Tensors) -> bool:
    values = view.choosing(form).read(own)
    return all(np.array_equal(array, expected[name]) for name, array in values.items())


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
            way, told = _best(pairing, choice, trial)
            pairing = pairing.choosing(choice, way)
            if not told:
                undecided.append(choice)
        if not undecided or pairing == before:
            break
    if undecided and strict:
        raise UserError(_message(pairing, undecided[0]))
    return pairing.open(())


def _best(pairing: Pairing, choice: Choice, trial: Trial) -> tuple[Sequence[int], bool]:
    """Return the way with which the most agrees, and whether something tells it."""
    for way in choice.ways:
        if trial.plain(pairing.choosing(choice, way)) <= AGREES:
            return way, True
    found = [sites(pairing.choosing(choice, way), trial, alone=True) for way in choice.ways]
    agreeing = [sum(far <= AGREES for far, _ in one.values()) for one in found]
    best = [i for i, count in enumerate(agreeing) if count == max(agreeing)]
    # Behind a mistake no way agrees, and the right one is by far the nearest.
    told = best[0] if len(best) == 1 else nearest(found)
    return choice.ways[best[0] if told is None else told], told is not None


def _message(pairing: Pairing, choice: Choice) -> str:
    views = [pairing.views[i] for i in choice.views[0]]
    i, view = next((n, v) for n, v in enumerate(views) if len({way[n] for way in choice.ways}) > 1)
    forms = [str(view.forms[n]) for n in dict.fromkeys(way[i] for way in choice.ways)]
    ours = [p.torch.tensors["value"] for p in pairing.pairs if {*p.flax.tensors.values()} & {*view.names}]
    entry = f"{' + '.join(ours)!r}: {' + '.join(view.held) + ': ' + forms[0]!r}"
    said = "; ".join(itertools.islice(forms, 4))
    return (
        f"{', '.join(view.held)}: {len(forms)} forms of PyTorch's {', '.join(ours)} fit ({said}), and neither values "
        f"nor computing tell which is right; say it with names={{{entry}}}; nothing was written"
    )
