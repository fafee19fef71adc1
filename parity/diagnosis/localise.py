"""What is wrong by itself: each layer on the reference's inputs, and what stands between layers on their outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from parity.diagnosis.forced_runs import RecordedRun
from parity.numerics import bounds
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Probe
from parity.running.taps import layer_of

NETWORK, LOSS = "(the network)", "(the loss)"

# Two differences are one that is carried on, as a residual stream does, where they are the same but for this part.
CARRIED = 1e-6

# A mistake moves a tensor by more than this part of it, and rounding in a single layer by less.
FORWARD, BACKWARD = 1e-10, 1e-9


@dataclass(frozen=True)
class Deviation:
    """One thing that is wrong by itself.

    Attributes:
        layer: the layer; for what stands between layers, the innermost recorded module around it.
        aspect: `output`, `statistics` or `gradient` of the layer itself; `between` where what arrives at a call, or
            leaves the module, is wrong although all layers before it are right; `gradient between` likewise; `loss`
            of the loss of right outputs.
        train: in train mode; False where eval mode shows it already.
        call: the call at which it is seen: for `between` the one at whose entrance, or the module at whose exit.
        before: the layer after which it stands; `after`, of a gradient, the one before which it stands.
        side: `enter` or `leave` of the call; `end` for an output of the network.
    """

    layer: str
    aspect: str
    train: bool
    call: str
    before: str = ""
    side: str = "leave"
    after: str = ""


@dataclass(frozen=True)
class ForcedRuns:
    """One mode: the reference, the forced run of the port, and what is wrong by itself."""

    reference: RecordedRun
    port: RecordedRun
    deviations: list[Deviation]


def _counted(run: RecordedRun, fed: Probe | None) -> RecordedRun:
    """Return a run without the positions that do not count; its gradients there are compared."""
    if fed is None or fed.mask is None:
        return run
    inputs, outputs = ({n: fed.counted(a) for n, a in tensors.items()} for tensors in (run.inputs, run.outputs))
    return replace(run, inputs=inputs, outputs=outputs)


def _wrong(got: Tensors, expected: Tensors, allowed: float) -> set[str]:
    """The tensors that are farther off than rounding explains, against what their number of elements lets expect."""
    sizes = {name: bounds.norm(array) for name, array in expected.items()}
    count = sum(array.size for array in expected.values())
    rms = float(np.sqrt(sum(size**2 for size in sizes.values()) / max(count, 1)))
    return {
        name
        for name, array in got.items()
        if name in expected
        and bounds.distance(array, expected[name]) > allowed * max(sizes[name], 1e-3 * rms * expected[name].size ** 0.5)
    }


class Carried:
    """The differences that were seen, to know one again that a residual stream carries on."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def again(self, got: np.ndarray, expected: np.ndarray) -> bool:
        """Return whether a difference was seen before; remember it."""
        if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
            return False
        difference = np.asarray(got, np.float64) - expected
        allowed = CARRIED * bounds.norm(difference) + FORWARD * bounds.norm(expected) / 10
        known = any(d.shape == difference.shape and bounds.norm(difference - d) <= allowed for d in self.seen)
        self.seen += [] if known else [difference]
        return known


def deviations(
    reference: RecordedRun,
    port: RecordedRun,
    leaf: Collection[str],
    train: bool,
    shared: Collection[str] = (),
    fed: Probe | None = None,
) -> Iterator[Deviation]:
    """What is wrong by itself in one mode, in execution order; gradients behind, from the end of the network.

    Args:
        leaf: the names of the layers in which no other is recorded.
        shared: the layers whose parameters are used outside of them too: a mistake elsewhere reaches their gradients.
        fed: says which positions count; by default all.
    """
    reference, port = _counted(reference, fed), _counted(port, fed)
    carried = Carried()
    seen: set[str] = set()
    arrived = _wrong(port.inputs, reference.inputs, FORWARD)
    computed = _wrong(port.outputs, reference.outputs, FORWARD)
    before = ""
    for event, call, around in reference.events:
        outer = layer_of(around[-1]) if around else NETWORK
        if event == "enter" and call in arrived:
            if carried.again(port.inputs[call], reference.inputs[call]):
                continue
            seen |= {outer}
            yield Deviation(outer, "between", train, call, before, "enter")
        elif event == "leave" and call in computed:
            name = layer_of(call)
            seen |= {name}
            yield Deviation(name, "output" if name in leaf else "between", train, call, before)
        if event == "leave":
            before = call
    ends = sorted(_wrong(port.values, reference.values, FORWARD))
    for name in ends:
        seen |= {NETWORK}
        if carried.again(port.values[name], reference.values[name]):
            continue
        yield Deviation(NETWORK, "between", train, name, before, "end")
    if not train:
        return
    if not ends and not math.isclose(port.loss, reference.loss, rel_tol=FORWARD, abs_tol=FORWARD):
        seen |= {NETWORK}  # the gradients that it sends into the network are wrong with it
        yield Deviation(LOSS, "loss", train, LOSS, before)
    for name in sorted(_wrong(port.statistics, reference.statistics, FORWARD)):
        if (layer := name.rpartition(".")[0]) not in seen:
            seen |= {layer}
            yield Deviation(layer, "statistics", train, layer)
    entering = _wrong(port.input_gradients, reference.input_gradients, BACKWARD)
    leaving = _wrong(port.output_gradients, reference.output_gradients, BACKWARD)
    parameters = {n.rpartition(".")[0] for n in _wrong(port.parameters, reference.parameters, BACKWARD)}
    parameters -= {*shared} if seen else set()
    after = ""
    for event, call, around in reversed(reference.events):
        name, outer = layer_of(call), layer_of(around[-1]) if around else NETWORK
        if event == "leave" and call in leaving and outer not in seen:
            seen |= {outer}
            yield Deviation(outer, "gradient between", train, call, call, after=after)
        elif event == "enter" and (call in entering or name in parameters) and name not in seen:
            seen |= {name}
            yield Deviation(name, "gradient" if name in leaf else "gradient between", train, call, call)
        after = call if event == "enter" else after
