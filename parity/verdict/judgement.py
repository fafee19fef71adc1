"""Compares every tensor of every quantity with its bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parity.numerics import bounds
from parity.numerics.bounds import MULTIPLE, Responses
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import QUANTITIES
from parity.reports.report import Point, Row

# A port that rounds more than the reference by this factor gets advice; it is not a mismatch.
MORE = 10

# A distance of this many rounding responses cannot be rounding, on either side, so the port's own response is not
# measured. The largest distance of a right port so far was 203 responses.
EXPLAINABLE = 1e6

# The quantities whose tensors are kept if they differ.
KEPT = ("training.parameter", "gradient.input")

LAYERS = ("layer.eval", "layer.train")

UNMOVED = (
    "no output moves with PyTorch's weights, and all of its gradients are zero, as before a ReLU that is never on; "
    "give inputs or weights with which the outputs depend on the layers"
)


@dataclass(frozen=True)
class Judgement:
    """One quantity of one port.

    Attributes:
        row: the worst tensor.
        outside: the tensors beyond their bounds, in the reference's order.
        largest: the largest relative distance of a tensor that is not zero in exact arithmetic.
        multiple: the worst tensor's distance as a multiple of its rounding response.
        points: every tensor, in the reference's order.
        got: the port's tensors, if the diagnosis may need them.
    """

    row: Row
    outside: tuple[str, ...]
    largest: float
    multiple: float
    points: tuple[Point, ...] = ()
    got: Tensors = field(default_factory=dict)

    def and_then(self, other: Judgement) -> Judgement:
        """Combine two parts of one quantity."""
        worst = max(self, other, key=lambda judgement: judgement.multiple)
        return Judgement(
            replace(worst.row, ok=self.row.ok and other.row.ok),
            self.outside + other.outside,
            max(self.largest, other.largest),
            worst.multiple,
            self.points + other.points,
            self.got | other.got,
        )

    def without_outside(self) -> Judgement:
        """Keep only the tensors within their bounds."""
        points = tuple(point for point in self.points if point.ok)
        worst = max(
            points, key=lambda p: p.distance / p.bound if p.bound else 0.0, default=Point("(none)", 0.0, 0.0, True)
        )
        row = replace(self.row, tensor=worst.layer, distance=worst.distance, bound=worst.bound, ok=True)
        multiple = MULTIPLE * worst.distance / worst.bound if worst.bound else 0.0
        return Judgement(row, (), max((p.distance for p in points), default=0.0), multiple, points)


def judge(port: str, run: Iterable[tuple[str, Tensors]], responses: Responses) -> dict[str, Judgement]:
    """Every quantity of a run, in the order of the table."""
    found: dict[str, Judgement] = {}
    for quantity, tensors in run:
        tensors = {name: responses.compared(quantity, name, array) for name, array in tensors.items()}
        expected = responses.reference[quantity]
        if quantity.startswith("training."):  # one of several parts
            steps = {name.rpartition("@")[2] for name in tensors}
            expected = {name: array for name, array in expected.items() if name.rpartition("@")[2] in steps}
        if quantity == "training.state":  # optax's own optimizers keep some tensors in another form, or without a name
            expected = {name: expected[name] for name in expected if name in tensors}
            tensors = {name: tensors[name] for name in expected}
            if not expected:
                continue
        part = _judge(port, quantity, tensors, expected, responses)
        found[quantity] = found[quantity].and_then(part) if quantity in found else part
    return {quantity: found[quantity] for quantity in QUANTITIES if quantity in found}


def _judge(port: str, quantity: str, got: Tensors, expected: Tensors, responses: Responses) -> Judgement:
    outside, largest, points = [], 0.0, []
    # A tensor that is zero in exact arithmetic holds only rounding; show it if it is wrong, or if all tensors are like
    # it.
    worst: tuple[bool, float, str, float, float] = (False, -1.0, "", 0.0, 0.0)
    for name in dict.fromkeys((*expected, *got)):
        telling = True
        if name not in got or name not in expected:
            absent = "the port" if name not in got else "the reference"
            ratio, label, far, bound = np.inf, f"{name} (absent from {absent})", np.inf, 0.0
        else:
            response = responses.response(quantity, name)
            size = responses.norm(quantity, name) or 1.0
            far, bound = bounds.distance(got[name], expected[name]) / size, MULTIPLE * response / size
            ratio, label = far * MULTIPLE / bound if bound else (np.inf if far else 0.0), name
            if got[name].shape != expected[name].shape:
                label = f"{name} (shape {got[name].shape}, expected {expected[name].shape})"
            if responses.zero_in_exact_arithmetic(quantity, name):
                telling = ratio > MULTIPLE
            else:
                largest = max(largest, far)
        if ratio > MULTIPLE:
            outside.append(name)
        points.append(Point(name, float(far), float(bound), ok=ratio <= MULTIPLE))
        worst = max(worst, (telling, float(ratio), label, float(far), float(bound)))
    _, ratio, label, far, bound = worst
    row = Row(port, quantity, label if points else "(none)", far, bound, ok=not outside)
    kept = got if outside and quantity in KEPT else {}
    return Judgement(row, tuple(outside), float(largest), ratio, tuple(points), kept)


def undecided(responses: Responses) -> str | None:
    """Why the check cannot tell, with the layer that amplifies the rounding; None if every bound decides."""
    if responses.unmoved:
        return UNMOVED
    for quantity in responses.reference:
        for name in responses.undecided(quantity):
            if not np.isfinite(responses.reference[quantity][name]).any():
                return f"{quantity} {name}: the reference has no finite number there (NaN is equal to NaN in any port)"
            relative = responses.bound(quantity, name) / responses.sizes(quantity)[name]
            said = f"{quantity} {name}: a right port may differ by {relative:.0e} of it, more than {bounds.DECIDES:.0e}"
            return f"{said}; rounding grows most at {_amplifier(responses)}"
    return None


def _amplifier(responses: Responses) -> str:
    """The layer whose output has far more rounding, relative to its size, than the one before it."""
    found = (0.0, "")
    for quantity in ("layer.eval", "layer.train"):
        least = before = float(np.finfo(np.float64).eps)
        for name in responses.reference[quantity]:
            relative = max(least, responses.response(quantity, name) / (responses.norm(quantity, name) or 1.0))
            times = relative / before
            found = max(found, (times, f"{name} ({quantity}, {times:.0e} times)"))
            before = relative
    return found[1]


def rounds_more(port: str, responses: Responses) -> Iterator[str]:
    """Yield where the port rounds far more than the reference: the first layer, forward in execution order.

    Args:
        responses: of both sides.
    """
    assert responses.port is not None
    for quantity in ("layer.eval", "layer.train", "gradient.parameter"):
        for name in responses.reference[quantity]:
            own = responses.of_reference(quantity, name)
            times = responses.port.measured(quantity, name) / own if own else 0.0
            if times >= MORE:
                yield f"{port} rounds {times:.0f} times more than PyTorch at {name} ({quantity}); it passes"
                return


def decided_by_the_network(
    port: str, judged: Mapping[str, Judgement], frozen: bool
) -> tuple[Mapping[str, Judgement], list[str]]:
    """Return the judgements without differences that are not mistakes when everything else agrees, and advice on them.

    A layer may be divided differently: a scale is inside or outside of it, or it is called on a part of its input. If
    outputs, loss, gradients, statistics and training agree, such a layer only gets a note. The same holds for a
    gradient of inputs that a port stops before frozen layers.

    Args:
        frozen: whether PyTorch has frozen parameters.
    """
    wrong = [quantity for quantity, judgement in judged.items() if judgement.outside]
    inputs = judged["gradient.input"]
    stopped = frozen and inputs.outside and not any(inputs.got[name].any() for name in inputs.outside)
    apart = {*LAYERS, *(("gradient.input",) if stopped else ())}
    # No output of training depends on the running statistics, so a difference in them is reported separately.
    if not {*wrong} & apart or not {*wrong} <= {*apart, "statistics"}:
        return judged, []
    said = []
    if layers := list(dict.fromkeys(name for q in LAYERS if q in wrong for name in judged[q].outside)):
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        said.append(f"{port}: {layers[0]}{more}: differs from PyTorch's; everything else agrees")
    if stopped:
        said.append(
            f"{port}: no gradient reaches {inputs.outside[0]}, where PyTorch's does, and everything else agrees"
        )
    return {q: j.without_outside() if q in wrong and q in apart else j for q, j in judged.items()}, said
