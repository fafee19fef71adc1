"""Runs the reference, its perturbed copies and the ports, and judges every tensor of every quantity.

Runs are streams of (quantity, tensors): of a port only the verdicts are kept, so that one network's activations are in
memory beside the reference's at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from parity.diagnosis import findings as diagnosis
from parity.diagnosis import forced_runs, localise
from parity.diagnosis import training as training_diagnosis
from parity.diagnosis.localise import Deviation
from parity.numerics import bounds
from parity.numerics.bounds import DRAWS, MULTIPLE, Responses
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import QUANTITIES, Probe, Training, parameter_of
from parity.reports.report import Divergence, Finding, Point, Row
from parity.running import flax as run_flax
from parity.running import memory
from parity.running import on_disk as spill
from parity.running import pytorch as run_pytorch
from parity.running.flax import Functional
from parity.verdict import roles
from ports import UserError, weights

Progress = Callable[[str], None]

OPTIMIZER = "(the optimizer)"

# The quantities whose tensors are named after parameters and statistics, not after layers.
OF_PARAMETERS = ("gradient.parameter", "statistics", "training.parameter", "training.state")

# Those of them that show which tensors are trained.
TRAINED = ("gradient.parameter", "training.parameter", "training.state")

# The quantities that are drawn layer by layer.
DRAWN = ("layer.eval", "layer.train", "gradient.parameter")


@dataclass(frozen=True)
class Judgement:
    """One quantity of one port.

    Attributes:
        row: the worst tensor.
        outside: the tensors beyond their bounds, in the reference's order.
        largest: the largest relative distance of a tensor that is not zero in exact arithmetic.
        multiple: the worst tensor's distance as a multiple of its rounding response.
        points: every tensor, in the reference's order.
        got: the port's tensors, where a mistake may have to be found from them.
    """

    row: Row
    outside: tuple[str, ...]
    largest: float
    multiple: float
    points: tuple[Point, ...] = ()
    got: Tensors = field(default_factory=dict)

    def and_then(self, other: Judgement) -> Judgement:
        """Both, of two parts of one quantity."""
        worst = max(self, other, key=lambda judgement: judgement.multiple)
        return Judgement(
            replace(worst.row, ok=self.row.ok and other.row.ok),
            self.outside + other.outside,
            max(self.largest, other.largest),
            worst.multiple,
            self.points + other.points,
            self.got | other.got,
        )


def responses_of(
    reference: torch.nn.Module,
    fed: Probe,
    training: Training,
    seed: int,
    progress: Progress,
    names: Collection[str] | None = None,
) -> Responses:
    """Runs the reference once as it is and `DRAWS` times perturbed."""
    progress("reference in PyTorch")
    state = weights.read(reference)
    parameters = {name: state[name] for name in run_pytorch.updated(reference, fed)}
    responses = Responses(spill.spilled(run_pytorch.observe(reference, fed, training, names)), parameters, fed.idle)
    for draw in range(DRAWS):
        progress(f"rounding response {draw + 1} of {DRAWS}")
        moved, moved_probe = bounds.perturbed(state, fed, seed * DRAWS + draw)
        moved |= {name: moved[first] for name, first in run_pytorch.tied(reference).items()}
        copy = run_pytorch.promote(reference)
        weights.write(copy, moved)
        responses.add(run_pytorch.observe(copy, moved_probe, training, names))
        memory.release()
    return responses


def compare(
    reference: torch.nn.Module,
    candidates: Mapping[str, Callable[[], Functional]],
    fed: Probe,
    training: Training,
    *,
    seed: int,
    names: Collection[str] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """The fields of a `reports.report.Model` that come out of running.

    Args:
        reference: in float64.
        candidates: by port, what builds the network in float64; each is built when its turn comes.
        names: the modules that are recorded, by PyTorch's names; by default all but Sequentials that have parameters.
    """
    responses = responses_of(reference, fed, training, seed, progress, names)
    judged: dict[str, dict[str, Judgement]] = {}
    findings: list[Finding] = []
    first = None
    for port, build in candidates.items():
        progress(f"{port}: compiling and running")
        functional = build()
        run = run_flax.observe(
            functional, fed, training, list(run_pytorch.parameters(reference, fed)), responses.reference
        )
        try:
            judged[port] = judge(port, run, responses)
        except (TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            said = str(error).strip().partition("\n")[0]
            text = f"{port}: the network raises {type(error).__name__}: {said}; expected it to run as PyTorch's does"
            raise UserError(text) from error
        wrong = [quantity for quantity, j in judged[port].items() if j.outside]
        outside = {quantity: judged[port][quantity].outside for quantity in TRAINED if quantity in judged[port]}
        apart = roles.findings(port, reference, fed, outside, training.own)
        findings += apart
        if apart and all(quantity in TRAINED for quantity in wrong):
            first = first or first_divergence(port, judged[port], {})
        elif wrong and all(quantity.startswith("training.") for quantity in wrong):
            progress(f"{port}: looking for the mistake of the training")
            findings.append(_training(port, reference, fed, training, judged[port], responses))
            first = first or first_divergence(port, judged[port], {})
        elif wrong:
            progress(f"{port}: looking for the layers that are wrong")
            found, divergence = _findings(port, functional, reference, fed, judged[port], names)
            findings += [f for f in found if f.trap or f.layer not in {a.layer for a in apart}]
            first = first or divergence
        del functional, run
        memory.release()
    return {
        "rows": tuple(j.row for quantities in judged.values() for j in quantities.values()),
        "first_divergence": first,
        "undecided": undecided(responses),
        "largest": {port: {q: j.largest for q, j in found.items()} for port, found in judged.items()},
        "multiple": {port: {q: j.multiple for q, j in found.items()} for port, found in judged.items()},
        "findings": tuple(findings),
        "profile": {port: {q: found[q].points for q in DRAWN if q in found} for port, found in judged.items()},
    }


def _findings(
    port: str,
    functional: Functional,
    reference: torch.nn.Module,
    fed: Probe,
    judged: Mapping[str, Judgement],
    names: Collection[str] | None,
) -> tuple[list[Finding], Divergence]:
    """Every mistake by itself, and the first divergence of the whole run."""
    tapped = run_pytorch.with_parameters(reference) if names is None else list(names)
    leaf = {name for name in tapped if not any(other.startswith(f"{name}.") for other in tapped)}
    cases = {}
    for train in (False, True):
        expected = forced_runs.of_reference(reference, fed, tapped, train)
        got = forced_runs.of_port(functional, fed, expected, train)
        cases[train] = localise.ForcedRuns(expected, got, list(localise.deviations(expected, got, leaf, train)))
        memory.release()
    first = first_divergence(port, judged, {train: case.deviations for train, case in cases.items()})
    found = diagnosis.findings(port, reference, fed, cases, leaf)
    if not found:
        text = f"{first.quantity} differs, and every layer by itself is right"
        found = [Finding(port, first.layer, None, text)]
    return found, first


def _training(
    port: str,
    reference: torch.nn.Module,
    fed: Probe,
    training: Training,
    judged: Mapping[str, Judgement],
    responses: Responses,
) -> Finding:
    """The mistake of a training whose gradients are right."""
    got = judged["training.parameter"].got
    if trap := training_diagnosis.explain(reference, fed, training, got, responses) if got else None:
        return Finding(port, OPTIMIZER, trap.name, f"{trap.text}; {trap.mend}")
    quantity = next(q for q in ("training.parameter", "training.state") if q in judged and judged[q].outside)
    name, _, step = judged[quantity].outside[0].rpartition("@")
    said = f"the gradients are right, and {quantity} is not: {name} after step {step}"
    return Finding(port, OPTIMIZER, None, f"{said}; compare the optimizer's options and the order of its parts")


def judge(port: str, run: Iterable[tuple[str, Tensors]], responses: Responses) -> dict[str, Judgement]:
    """Every quantity of a run, in the order of the table."""
    found: dict[str, Judgement] = {}
    for quantity, tensors in run:
        expected = responses.reference[quantity]
        if quantity.startswith("training."):  # one of several parts
            steps = {name.rpartition("@")[2] for name in tensors}
            expected = {name: array for name, array in expected.items() if name.rpartition("@")[2] in steps}
        if quantity == "training.state":  # optax's own optimizers keep some tensors otherwise, or under no name
            expected = {name: expected[name] for name in expected if name in tensors}
            tensors = {name: tensors[name] for name in expected}
            if not expected:
                continue
        part = _judge(port, quantity, tensors, expected, responses)
        found[quantity] = found[quantity].and_then(part) if quantity in found else part
    return {quantity: found[quantity] for quantity in QUANTITIES if quantity in found}


def _judge(port: str, quantity: str, got: Tensors, expected: Tensors, responses: Responses) -> Judgement:
    outside, largest, points = [], 0.0, []
    worst: tuple[float, str, float, float] = (-1.0, "", 0.0, 0.0)
    for name in dict.fromkeys((*expected, *got)):
        if name not in got or name not in expected:
            absent = "the port" if name not in got else "the reference"
            ratio, label, far, bound = np.inf, f"{name} (absent from {absent})", np.inf, 0.0
        else:
            response = responses.response(quantity, name)
            size = bounds.norm(expected[name]) or 1.0
            far, bound = bounds.distance(got[name], expected[name]) / size, MULTIPLE * response / size
            ratio, label = far * MULTIPLE / bound if bound else (np.inf if far else 0.0), name
            if got[name].shape != expected[name].shape:
                label = f"{name} (shape {got[name].shape}, expected {expected[name].shape})"
            if not responses.zero_in_exact_arithmetic(quantity, name):
                largest = max(largest, far)
        if ratio > MULTIPLE:
            outside.append(name)
        points.append(Point(name, float(far), float(bound), ok=ratio <= MULTIPLE))
        worst = max(worst, (float(ratio), label, float(far), float(bound)))
    ratio, label, far, bound = worst
    row = Row(port, quantity, label if points else "(none)", far, bound, ok=not outside)
    kept = got if outside and quantity == "training.parameter" else {}
    return Judgement(row, tuple(outside), float(largest), ratio, tuple(points), kept)


def first_divergence(port: str, judged: Mapping[str, Judgement], forced: Mapping[bool, list[Deviation]]) -> Divergence:
    """Forward in eval, then forward in train, then what follows from them; gradients from the end of the network.

    Args:
        forced: by mode (train or not) what is wrong by itself.
    """
    for quantity, train in (("layer.eval", False), ("layer.train", True)):
        if outside := judged[quantity].outside:
            if deviation := next(iter(forced[train]), None):
                behind = "the output" if deviation.side == "end" else deviation.call
                text = (
                    f", between {deviation.before or 'the input'} and {behind}" if deviation.aspect == "between" else ""
                )
                return Divergence(port, deviation.layer, quantity, text)
            return Divergence(port, outside[0], quantity)
    quantity, outside = next((q, j.outside) for q, j in judged.items() if j.outside)
    name = outside[-1] if quantity == "gradient.parameter" else outside[0]
    name = parameter_of(quantity, name) if quantity.startswith("training.") else name
    layer = name.rpartition(".")[0] if quantity in OF_PARAMETERS else name
    return Divergence(port, layer, quantity, f" ({name})" if layer != name else "")


def undecided(responses: Responses) -> str | None:
    """Why the check cannot tell, with the layer that blows the rounding up; None where every bound decides."""
    for quantity in responses.reference:
        for name in responses.undecided(quantity):
            if not np.isfinite(responses.reference[quantity][name]).any():
                return f"{quantity} {name}: no finite number in the reference's (NaN is equal to NaN in any port)"
            relative = responses.bound(quantity, name) / responses.sizes(quantity)[name]
            said = f"{quantity} {name}: a right port may differ by {relative:.0e} of it, more than {bounds.DECIDES:.0e}"
            return f"{said}; rounding grows most at {_amplifier(responses)}"
    return None


def _amplifier(responses: Responses) -> str:
    """The layer whose output holds by far more rounding, relative to its size, than the one before it."""
    found = (0.0, "")
    for quantity in ("layer.eval", "layer.train"):
        least = before = float(np.finfo(np.float64).eps)
        for name, tensor in responses.reference[quantity].items():
            relative = max(least, responses.response(quantity, name) / (bounds.norm(tensor) or 1.0))
            times = relative / before
            found = max(found, (times, f"{name} ({quantity}, {times:.0e} times)"))
            before = relative
    return found[1]
