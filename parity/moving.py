"""Moves PyTorch's weights into a Flax model, after both are paired and a run has confirmed the pairing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from parity.numerics.quantities import Probe
from parity.pairing import choosing, ordering
from parity.pairing.matching import OpenError
from parity.pairing.models import PairedModels, building, pair_models
from parity.pairing.pairs import Choice, Pairing
from parity.pairing.trials import AGREES, Trial
from parity.running import probes
from parity.running.flax_ports import FLAX_PORTS
from parity.verdict import transfer
from ports import weights
from ports.errors import UserError

TRIED = 6  # other ways of choices, each with the layers put in order anew


def moved(model: torch.nn.Module, other: Any, fed: Probe, names: Mapping[str, str | None] | None) -> Any:
    """Return the Flax model with PyTorch's weights. See `parity.move`."""
    both = settled(model, other, fed, names)
    port = FLAX_PORTS[both.port]
    own = both.moved(both.state)
    _fitting(own, port.places(other, both.layers))
    new = port.written(other, own, both.layers)
    _read_back(own, port.places(new, both.layers))
    return new


def settled(model: torch.nn.Module, other: Any, fed: Probe, names: Mapping[str, str | None] | None) -> PairedModels:
    """Return both models with a pairing that the values or a run confirm.

    Raises:
        UserError: layers cannot be paired, or do not fit.
    """
    try:
        both = pair_models(model, other, fed, names)
    except OpenError as error:
        return _guessed(model, other, fed, names, error)
    return _by_computing(both, other)


def _guessed(
    model: torch.nn.Module, other: Any, fed: Probe, names: Mapping[str, str | None] | None, error: OpenError
) -> PairedModels:
    """Return both models with layers paired that only a loose order of calls tells, if the models then agree.

    Raises:
        OpenError: they do not agree, or layers stay open.
    """
    with suppress(UserError):
        both = _by_computing(pair_models(model, other, fed, names, confirmed=True), other)
        state = probes.varied(both.state, {*both.tensors.values()}, 0)
        if Trial(building(both, state, second=True), both.reference, both.fed).plain(both.pairing) <= AGREES:
            return both
    raise error


def _by_computing(both: PairedModels, other: Any) -> PairedModels:
    """Return both models with the pairing that values or a run confirm."""
    fed = both.fed
    # A model that already holds PyTorch's weights is better evidence than any computation.
    both = replace(both, pairing=choosing.by_values(both.pairing, both.own_values, both.state))
    if problems := [misfit.text for misfit in transfer.judge(both.port, both.pairing).misfits]:
        raise weights.WeightsError(problems)
    _fitting(both.moved(both.state), FLAX_PORTS[both.port].places(other, both.layers))
    state = probes.varied(both.state, {*both.tensors.values()}, 0)
    weights.write(both.reference, dict(state))
    build = building(both, state, second=True)
    pairing = both.pairing
    if not pairing.choices:
        return replace(both, pairing=ordering.settled(pairing, build, both.reference, fed))
    trial = Trial(build, both.reference, fed)
    try:
        chosen = choosing.by_computing(pairing, trial, strict=True)
    except UserError as error:  # layers that stand in another's place hide the right form
        chosen = _by_turns(pairing, trial, error)
    ordered = ordering.settled(chosen, build, both.reference, fed)
    return replace(both, pairing=_together(ordered, pairing.choices, trial))


def _together(pairing: Pairing, choices: Sequence[Choice], trial: Trial) -> Pairing:
    """Return the pairing, or one in which tensors and layers are exchanged together, if only then the models agree.

    A tensor may have been chosen by the layer beside it, whose own order was not known then.

    Raises:
        UserError: the models never agree, and nothing tells the pairing from one with both exchanged.
    """
    rivals = choosing.rivals(pairing, choices)
    if not rivals or trial.plain(pairing) <= AGREES:
        return pairing
    for choice, way in rivals[:TRIED]:
        try:
            tried = ordering.settled(pairing.choosing(choice, way), trial.build, trial.reference, trial.fed)
        except UserError:
            continue
        if trial.plain(tried) <= AGREES:
            return tried
        if ordering.exchanges_layers(pairing, tried):
            ours, theirs = trial.depending([pairing, tried])
            if theirs >= ours:
                raise UserError(choosing.unsettled(pairing, choice))
    return pairing


def _by_turns(pairing: Pairing, trial: Trial, error: UserError) -> Pairing:
    """Return the pairing with forms chosen after the layers were put in order.

    Raises:
        UserError: what stays open.
    """
    try:
        likely = choosing.by_computing(pairing, trial, strict=False)
        ordered = ordering.settled(likely, trial.build, trial.reference, trial.fed)
        return choosing.by_computing(ordered.open(pairing.choices), trial, strict=True)
    except UserError:
        raise error from None


def _fitting(own: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> None:
    """Raise if a tensor loses bits in the Flax model's type, or has no place there."""
    problems = []
    for name, array in own.items():
        place = places[name]
        with np.errstate(all="ignore"):  # what overflows is refused
            narrowed = array.astype(place.dtype).astype(array.dtype)
        if not place.slots and array.any():
            problems.append(
                f"{name}: Flax's cell has no bias at the hidden state, which PyTorch's new gate multiplies by its "
                "reset gate; set that part of PyTorch's bias_hh to zero, or use a cell that has it "
                "(flax.linen.GRUCell)"
            )
        elif not np.array_equal(narrowed, array):
            problems.append(
                f"{name}: PyTorch's numbers lose bits in the Flax model's {place.dtype}; give it a wider param_dtype"
            )
    if problems:
        raise weights.WeightsError(problems)


def _read_back(own: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> None:
    """Raise if the Flax model does not hold every bit that was written: a defect of this package."""
    for name, array in own.items():
        if np.asarray(places[name].read()).tobytes() != array.astype(places[name].dtype).tobytes():
            raise RuntimeError(f"{name}: the Flax model does not hold what was written into it")
