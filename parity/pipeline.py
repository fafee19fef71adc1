"""The check itself: runs a subject, judges every tensor, and looks for the mistakes behind wrong tensors.

Runs are streams of (quantity, tensors). Only the verdicts of a port are kept, so that memory holds the activations of
one port at a time, with the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from parity.diagnosis import findings as diagnosis
from parity.diagnosis import flow, forced_runs, localise
from parity.diagnosis import precise as precise_diagnosis
from parity.diagnosis import training as training_diagnosis
from parity.diagnosis.divergence import first_divergence
from parity.numerics import masking
from parity.numerics.bounds import Responses
from parity.numerics.layouts import Tensors
from parity.numerics.pins import Pin, Pins, listed
from parity.reports.report import Cost, Divergence, Finding, Model
from parity.running import memory, unexercised
from parity.running import pytorch as run_pytorch
from parity.running.flax import Functional, PortRuns
from parity.running.responses import of_port, of_tables, responses_of
from parity.running.subject import Candidate, Progress, Subject
from parity.verdict import precision, roles
from parity.verdict.cost import CostMeter
from parity.verdict.judgement import EXPLAINABLE, Judgement, decided_by_the_network, judge, rounds_more, undecided
from parity.verdict.limits import LIMITS
from parity.verdict.precision import Policy
from ports.errors import UserError

OPTIMIZER = "(the optimizer)"

# The quantities that show which tensors are trained.
TRAINED = ("gradient.parameter", "training.parameter", "training.state")

# The quantities that are drawn layer by layer.
DRAWN = ("layer.eval", "layer.train", "gradient.parameter")

# The rounding of float64 as a part of float32's.
FLOAT32 = 2.0**-29
NARROW = 1e-6  # a difference of this size may be the rounding of a table to float32

TABLES = (
    "PyTorch's {} holds numbers rounded to float32 (6e-8 relative), by a formula that the check does not know. What "
    "depends on them is compared with that precision, the output up to {:.0e}, and all else in float64. For a closer "
    "comparison give the port the same array"
)

Judgements = Mapping[str, Judgement]


@dataclass(frozen=True)
class Outcome:
    """The result of one port.

    Attributes:
        judgements: by quantity.
        first: where it first leaves its bounds; None if it does not.
        undecided: why the check cannot tell, if bounds from both sides are too wide.
        advice: where the port rounds far more than the reference.
        pins: where the port's code fixes a type.
        cost: what its mistakes do to the model; None if it has none.
    """

    judgements: Judgements
    findings: tuple[Finding, ...] = ()
    first: Divergence | None = None
    undecided: str | None = None
    advice: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    cost: Cost | None = None


def run(subject: Subject, policy: Policy, progress: Progress) -> Model:
    """Check every port of a subject in float64, and measure the working precisions of the policy."""
    responses = responses_of(subject, progress)
    found: dict[str, Outcome] = {}
    for port, candidate in subject.candidates.items():
        pins = Pins(port)
        meter = CostMeter(port, responses.reference)
        outcome = _outcome(port, candidate, subject, responses, pins, meter, progress)
        cost = meter.cost if _wrong(outcome.judgements) else None
        found[port] = replace(outcome, pins=tuple(pins), cost=cost)
        memory.release()
    judged = {port: outcome.judgements for port, outcome in found.items()}
    right = [port for port, outcome in found.items() if not _wrong(outcome.judgements)]
    precise = _precise(subject, right, policy, progress)
    return Model(
        subject.title,
        rows=tuple(j.row for quantities in judged.values() for j in quantities.values()) + precise.rows,
        first_divergence=next((outcome.first for outcome in found.values() if outcome.first), None),
        undecided=undecided(responses)
        or next((o.undecided for o in found.values() if o.undecided), None)
        or precise.undecided,
        note=subject.note,
        largest={port: {q: j.largest for q, j in quantities.items()} for port, quantities in judged.items()},
        multiple={port: {q: j.multiple for q, j in quantities.items()} for port, quantities in judged.items()},
        findings=tuple(finding for outcome in found.values() for finding in outcome.findings) + precise.findings,
        profile={port: {q: qs[q].points for q in DRAWN if q in qs} for port, qs in judged.items()},
        precision=precision.measure(subject, policy, progress),
        pins=tuple(listed([*(subject.probe.pins or ()), *(pin for outcome in found.values() for pin in outcome.pins)])),
        costs=tuple(outcome.cost for outcome in found.values() if outcome.cost is not None),
        limits=tuple(LIMITS[dtype].said(dtype) for dtype in policy.dtypes if policy.decide),
        unexercised=subject.unexercised + unexercised.without_effect(responses.without_effect),
        advice=subject.advice + tuple(line for o in found.values() for line in o.advice) + precise.advice,
    )


def _precise(subject: Subject, right: Sequence[str], policy: Policy, progress: Progress) -> precise_diagnosis.Judged:
    """Judge the ports in every type of the policy, if it decides.

    Args:
        right: the ports that are right in float64; in other ports an error is more than rounding.
    """
    whole = precise_diagnosis.Judged()
    for dtype in policy.dtypes if policy.decide else ():
        for port in right:
            progress(f"working precision: every place of {port} in {dtype}")
            try:
                whole += precise_diagnosis.judged(subject, port, dtype, subject.probe.pins or (), policy.products)
            except precision.RAISED as error:
                whole += precise_diagnosis.Judged(undecided=f"{port} in {dtype} {precision.does_not_run(error)}")
            memory.release()
    return whole


def _outcome(
    port: str,
    candidate: Candidate,
    subject: Subject,
    responses: Responses,
    pins: Pins,
    meter: CostMeter,
    progress: Progress,
) -> Outcome:
    """Run and judge one port. If it is wrong, look for its mistakes."""
    progress(f"{port}: compiling and running")
    functional = candidate.build()
    trained = list(run_pytorch.parameters(subject.reference, subject.probe))
    runs = PortRuns(functional, subject.probe, subject.training, trained, responses.reference, pins)
    judged = _judged(port, meter.passing(runs.observe()), responses)
    frozen = tuple(roles.advice(port, subject.reference, runs.trains_frozen)) if not subject.training.own else ()
    judged, notes = decided_by_the_network(port, judged, bool(subject.probe.frozen))
    wrong = _wrong(judged)
    if wrong and max(judged[quantity].multiple for quantity in wrong) < EXPLAINABLE:
        progress(f"{port}: the port's own rounding response")
        responses = responses.with_port(of_port(runs, responses, subject))
        judged, notes = decided_by_the_network(
            port, _judged(port, runs.observe(), responses), bool(subject.probe.frozen)
        )
        wrong = _wrong(judged)
        if not wrong:
            return Outcome(
                judged, undecided=undecided(responses), advice=(*rounds_more(port, responses), *frozen, *notes)
            )
    # A layer may be cut otherwise, and then the network decides.
    far = max((judged[quantity].multiple for quantity in wrong if not quantity.startswith("layer.")), default=0.0)
    if wrong and subject.tables and far < EXPLAINABLE / FLOAT32:
        progress(f"{port}: the response to tables in float32")
        wider = responses.with_tables(of_tables(subject, responses))
        others, more = decided_by_the_network(port, _judged(port, runs.observe(), wider), bool(subject.probe.frozen))
        if not _wrong(others):
            names = wider.reference["output.eval"]
            bounds = (wider.bound("output.eval", name) / (wider.norm("output.eval", name) or 1.0) for name in names)
            advice = (TABLES.format(", ".join(subject.tables), max(bounds, default=0.0)), *frozen, *more)
            return Outcome(others, undecided=undecided(responses), advice=advice)
    outside = {quantity: judged[quantity].outside for quantity in TRAINED if quantity in judged}
    apart = roles.findings(port, subject.probe, outside, subject.training.own)
    if not wrong:
        return Outcome(judged, tuple(apart), advice=(*frozen, *notes))
    if apart and all(quantity in TRAINED for quantity in wrong):
        return Outcome(judged, tuple(apart), first_divergence(port, judged, {}))
    if all(quantity.startswith("training.") for quantity in wrong):
        progress(f"{port}: looking for the mistake of the training")
        mistake = _training(port, subject, judged, responses)
        return Outcome(judged, (*apart, mistake), first_divergence(port, judged, {}))
    progress(f"{port}: looking for the layers that are wrong")
    found, first, where = _layers(port, functional, subject, judged)
    apart = roles.findings(port, subject.probe, outside, subject.training.own, where)
    told = {finding.layer for finding in apart}
    advice = tuple(_behind_texts(port, subject, responses)) if "output.eval" in wrong else ()
    if subject.tables:  # beside a larger mistake the rounding of a table is none
        found = [f for f in found if f.trap or (f.size or 1.0) > NARROW] or found
    return Outcome(judged, (*apart, *(f for f in found if f.trap or f.layer not in told)), first, advice=advice)


def _behind_texts(port: str, subject: Subject, responses: Responses) -> Iterator[str]:
    """Yield advice if outputs that differ have positions after the texts that PyTorch packs."""
    texts = subject.probe.packed
    outputs = responses.reference["output.eval"].values()
    if texts is not None and subject.probe.mask is None and any(masking.covers(texts, a.shape) for a in outputs):
        yield (
            f"{port}: the outputs are also compared after the texts that PyTorch packs; if nothing there counts, "
            "pass mask=, true at the tokens of the texts"
        )


def _wrong(judged: Judgements) -> list[str]:
    """Return the quantities with a tensor outside of its bound."""
    return [quantity for quantity, judgement in judged.items() if judgement.outside]


def _judged(port: str, stream: Iterable[tuple[str, Tensors]], responses: Responses) -> Judgements:
    """Return the judgement of every quantity of a port.

    Raises:
        UserError: the port raises.
    """
    try:
        return judge(port, stream, responses)
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        said = str(error).strip().partition("\n")[0]
        text = f"{port}: the network raises {type(error).__name__}: {said}; expected it to run as PyTorch's does"
        raise UserError(text) from error


def _layers(
    port: str, functional: Functional, subject: Subject, judged: Judgements
) -> tuple[list[Finding], Divergence, frozenset[str]]:
    """Return every separate mistake, the first divergence of the whole run, and the modules whose values are wrong."""
    reference, fed = subject.reference, subject.probe
    names = run_pytorch.with_parameters(reference) if subject.names is None else list(subject.names)
    cases = _forced(functional, subject, names)
    cases, names = _without_cuts(functional, subject, names, cases)
    blocks = [name for name in subject.blocks if any(name in case.suspected for case in cases.values())]
    with_blocks = subject.candidates[port].with_blocks
    if blocks and with_blocks is not None:
        closer = _forced(with_blocks(blocks), subject, [*names, *blocks])
        if localise.narrower(cases, closer):
            functional, cases, names = with_blocks(blocks), closer, [*names, *blocks]
    found = diagnosis.findings(port, reference, fed, cases)
    nameless = frozenset(finding.layer for finding in found if finding.trap is None)
    if apart := _made_up_for(functional, subject, names, cases[False], nameless & cases[False].differing):
        cases = _forced(functional, subject, [name for name in names if name not in apart])
        found = diagnosis.findings(port, reference, fed, cases)
    first = first_divergence(port, judged, {train: case.deviations for train, case in cases.items()})
    if not found and first.quantity == roles.GRADIENT:
        found = roles.stopped(port, judged[roles.GRADIENT].outside, cases[True].port.parameters)
    if not found:
        text = f"{first.quantity} differs, and every layer by itself is right"
        found = [Finding(port, first.layer, None, text)]
    deviations = (deviation for case in cases.values() for deviation in case.deviations)
    return found, first, frozenset(d.layer for d in deviations if d.aspect in localise.VALUES)


def _without_cuts(
    functional: Functional, subject: Subject, names: list[str], cases: dict[bool, localise.ForcedRuns]
) -> tuple[dict[bool, localise.ForcedRuns], list[str]]:
    """Return the forced runs, and the recorded modules, without the layers that the port divides differently."""
    cut = localise.cut_otherwise(cases)
    while cut:
        left = [name for name in names if name not in cut]
        closer = _forced(functional, subject, left)
        kept = {layer for layer in cut if localise.mended(cases, closer, layer)}
        if kept == cut:
            return closer, left
        cut = kept
    return cases, names


def _made_up_for(
    functional: Functional, subject: Subject, names: Sequence[str], case: localise.ForcedRuns, layers: frozenset[str]
) -> frozenset[str]:
    """Return those of some layers whose output differs in the port, while later code makes up for it.

    One example is a norm that contains its activation in PyTorch: the port's own output has the same effect.

    Args:
        case: the forced run in eval mode.
    """
    left = layers
    while left:
        after = _forced_in(functional, subject, [name for name in names if name not in left], False)
        silent = localise.silent(case, after, left)
        if silent == left:
            return left
        left = silent
    return left


def _forced(functional: Functional, subject: Subject, names: Sequence[str]) -> dict[bool, localise.ForcedRuns]:
    """Return the forced runs of a port by mode, train or not.

    Args:
        names: the modules that are recorded.
    """
    return {train: _forced_in(functional, subject, names, train) for train in (False, True)}


def _forced_in(functional: Functional, subject: Subject, names: Sequence[str], train: bool) -> localise.ForcedRuns:
    reference, fed = subject.reference, subject.probe
    leaf = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    shared = run_pytorch.shared(reference, fed)
    expected = forced_runs.of_reference(reference, fed, names, train)
    got = forced_runs.of_port(functional, fed, expected, train)
    forced = {(side, call) for side in ("enter", "leave") for call in got.seen_at(side)}
    passed = flow.of_reference(reference, fed, names, forced, train)
    case = localise.compared(expected, got, leaf, train, passed, shared, fed)
    memory.release()
    return case


def _training(port: str, subject: Subject, judged: Judgements, responses: Responses) -> Finding:
    """Return the mistake of a training whose gradients are right."""
    got = judged["training.parameter"].got
    if got:
        found = training_diagnosis.explain(subject.reference, subject.probe, subject.training, got, responses)
        if found:
            trap, mends = found
            fix = tuple(diagnosis.fix_of(OPTIMIZER, mend) for mend in mends)
            return Finding(port, OPTIMIZER, trap.name, f"{trap.text}; {trap.mend}", fix=fix)
    quantity = next(q for q in ("training.parameter", "training.state") if q in judged and judged[q].outside)
    name, _, step = judged[quantity].outside[0].rpartition("@")
    said = f"the gradients are right, and {quantity} is not: {name} after step {step}"
    return Finding(port, OPTIMIZER, None, f"{said}; compare the optimizer's options and the order of its parts")
