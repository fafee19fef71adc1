"""Finds what is wrong by itself: layers on the reference's inputs, and the code between layers on their outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parity.diagnosis.flow import GIVEN, HANDED, SUMS, Flow, Place
from parity.diagnosis.forced_runs import RecordedRun
from parity.numerics import bounds
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Probe
from parity.running.taps import layer_of

NETWORK, LOSS = "(the network)", "(the loss)"

# Two differences are the same one, carried on by a residual stream, if they differ by less than this fraction.
CARRIED = 1e-6

# A deviation this many times larger than any earlier difference that may have reached it has its own cause.
LARGER = 30

# A mistake moves a tensor by more than this fraction, and rounding in a single layer by less.
FORWARD, BACKWARD = 1e-10, 1e-9


# The aspects of a deviation that say that the forward pass is wrong.
VALUES = ("output", "between")


@dataclass(frozen=True)
class Deviation:
    """One thing that is wrong by itself.

    Attributes:
        layer: the layer; for code between layers, the innermost module that contains it.
        aspect: `output`, `statistics` or `gradient` of the layer itself; `between` if the value that arrives at a call,
            or leaves the module, is wrong although all layers before it are right; `gradient between` likewise; `loss`
            of the loss of right outputs.
        train: whether it was seen in train mode; False if eval mode shows it already.
        call: the call at which it is seen; for `between`, the call at whose entrance, or the module at whose exit, it
            is seen.
        before: the layer that precedes it; `after`, for a gradient: the layer that follows it.
        side: `enter` or `leave` of the call; `end` for an output of the network.
        size: the distance from the reference there, relative to the reference.
        lead: the layer, or the place where its cause is first seen; deviations with the same lead are one mistake.
    """

    layer: str
    aspect: str
    train: bool
    call: str
    before: str = ""
    side: str = "leave"
    after: str = ""
    size: float = 0.0
    lead: str = ""


def behind_of(deviation: Deviation) -> str:
    """Return the call or exit that follows a mistake between layers."""
    if deviation.side == "end":
        return "the output"
    return (
        f"the end of {deviation.call}"
        if deviation.side == "leave" and deviation.aspect == "between"
        else deviation.call
    )


@dataclass(frozen=True)
class ForcedRuns:
    """One mode: the reference, the forced run of the port, and what is wrong by itself.

    Attributes:
        suspected: the modules whose operations may contain a mistake between layers.
        wrong: the places where the forward pass is wrong.
        within: by module, the places in its own code that are compared: its calls of layers, and its output.
        differing: the layers whose own output differs.
        flow: of the reference, in this mode.
    """

    reference: RecordedRun
    port: RecordedRun
    deviations: list[Deviation]
    suspected: frozenset[str] = frozenset()
    wrong: frozenset[Place] = frozenset()
    within: Mapping[str, frozenset[Place]] = field(default_factory=dict)
    differing: frozenset[str] = frozenset()
    flow: Flow = field(default_factory=Flow)


def compared(
    reference: RecordedRun,
    port: RecordedRun,
    leaf: Collection[str],
    train: bool,
    flow: Flow,
    shared: Collection[str] = (),
    fed: Probe | None = None,
) -> ForcedRuns:
    """Find what is wrong by itself in one mode, in execution order; gradients follow, from the end of the network.

    Args:
        leaf: the names of the layers in which no other is recorded.
        flow: of the reference, in this mode.
        shared: the layers whose parameters are also used elsewhere: a mistake there reaches their gradients.
        fed: the probe, which says which positions count; by default all.
    """
    found = _Comparison(_counted(reference, fed), _counted(port, fed), leaf, train, flow)
    deviations = [*found.forward()]
    if train:
        deviations += [*found.of_loss_and_statistics(), *found.backward(shared)]
    suspected = found.suspects.modules()
    differing = frozenset(d.layer for d in deviations if d.aspect == "output" and d.layer in leaf)
    within = found.within()
    return ForcedRuns(reference, port, deviations, suspected, frozenset(found.wrong), within, differing, flow)


def narrower(before: Mapping[bool, ForcedRuns], after: Mapping[bool, ForcedRuns]) -> bool:
    """Return whether runs with more modules recorded explain more, by mode: fewer of the same places are wrong.

    A module that the port divides differently makes other places wrong, and explains none.
    """
    return all(
        {(side, call) for side, call in after[train].wrong if call in case.reference.seen_at(side)} < case.wrong
        for train, case in before.items()
    )


def cut_otherwise(cases: Mapping[bool, ForcedRuns]) -> set[str]:
    """Return the layers whose own output differs, and after which the next value differs, too.

    The port may divide them differently: it may scale, or activate, outside of the layer.
    """
    return {d.layer for case in cases.values() for d, _ in _followed(case)}


def mended(before: Mapping[bool, ForcedRuns], after: Mapping[bool, ForcedRuns], layer: str) -> bool:
    """Return whether the value after a layer is right, or far nearer, if the port continues with its own output.

    Args:
        after: the runs in which the layer is not recorded.
    """
    found = []
    for train, case in before.items():
        for d, behind in _followed(case):
            if d.layer == layer:
                run = after[train]
                place = (behind.side, behind.call)
                ours, theirs = run.reference.seen_at(behind.side), run.port.seen_at(behind.side)
                seen = behind.call in ours and behind.call in theirs
                found.append(
                    seen and (place not in run.wrong or _far(theirs, ours, behind.call) * LARGER < behind.size)
                )
    return bool(found) and all(found)


def silent(before: ForcedRuns, after: ForcedRuns, layers: frozenset[str]) -> frozenset[str]:
    """Return those of some layers whose own output has the same effect as PyTorch's.

    Args:
        before: the run in which every layer hands on PyTorch's output.
        after: the run in which these layers are not recorded, and hand on their own.
    """
    moved: list[Place] = []
    for side, call in after.wrong:
        expected, got = (case.port.seen_at(side).get(call) for case in (before, after))
        # If another mistake makes a value wrong in both runs, the value counts only if it differs between the two runs.
        if (
            (side, call) not in before.wrong
            or expected is None
            or got is None
            or _wrong({"": got}, {"": expected}, FORWARD)
        ):
            moved.append((side, call))
    numbers = {number for place in moved for number in after.flow.slice(place)}
    guilty = layers & {module for number in numbers for module in after.flow.operations[number].modules}
    return frozenset() if moved and not guilty else layers - guilty


def _followed(case: ForcedRuns) -> Iterator[tuple[Deviation, Deviation]]:
    """Yield the layers that are wrong, each with the first value after it that is wrong between layers."""
    for i, d in enumerate(case.deviations):
        behind = next((other for other in case.deviations[i:] if other.aspect == "between"), None)
        if d.aspect == "output" and behind is not None:
            yield d, behind


def _counted(run: RecordedRun, fed: Probe | None) -> RecordedRun:
    """Return a run without the positions that do not count.

    Its gradients there are compared, except those at outputs of layers after a packed text.
    """
    if fed is None or (fed.mask is None and fed.packed is None):
        return run
    inputs, outputs = ({n: fed.counted(a) for n, a in tensors.items()} for tensors in (run.inputs, run.outputs))
    coming = {n: fed.in_texts(a) for n, a in run.output_gradients.items()}
    return replace(run, inputs=inputs, outputs=outputs, output_gradients=coming)


def _wrong(got: Tensors, expected: Tensors, allowed: float) -> set[str]:
    """The tensors that are farther off than rounding explains, for the size expected of their number of elements."""
    sizes = {name: bounds.norm(array) for name, array in expected.items()}
    floating = [name for name, array in expected.items() if bounds.floating(array)]  # indices have no meaningful size
    count = sum(expected[name].size for name in floating)
    rms = float(np.sqrt(sum(sizes[name] ** 2 for name in floating) / max(count, 1)))
    return {
        name
        for name, array in got.items()
        if name in expected
        and bounds.distance(array, expected[name]) > allowed * max(sizes[name], 1e-3 * rms * expected[name].size ** 0.5)
    }


def _far(got: Tensors, expected: Tensors, name: str) -> float:
    """Return the distance of two tensors, relative to the expected one."""
    return float(bounds.distance(got[name], expected[name]) / (bounds.norm(expected[name]) or 1.0))


class Carried:
    """The differences so far, to recognise one that a residual stream carries on."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []
        self.shaped: list[tuple[np.ndarray, np.ndarray]] = []  # values of other shapes than PyTorch's

    def again(self, got: np.ndarray, expected: np.ndarray) -> bool:
        """Return whether a difference was seen before, and remember it."""
        if got.shape != expected.shape:
            known = any(np.array_equal(a, got) and np.array_equal(b, expected) for a, b in self.shaped)
            self.shaped += [] if known else [(got, expected)]
            return known
        if not (np.isfinite(got).all() and np.isfinite(expected).all()):
            return False
        difference = np.asarray(got, np.float64) - expected
        allowed = CARRIED * bounds.norm(difference) + FORWARD * bounds.norm(expected) / 10
        known = any(d.shape == difference.shape and bounds.norm(difference - d) <= allowed for d in self.seen)
        self.seen += [] if known else [difference]
        return known


class Suspects:
    """The operations that may contain a mistake, and the mistakes that were already reported.

    Args:
        right: the places with right values; all operations behind them are right, too.
    """

    def __init__(self, flow: Flow, right: Collection[Place]) -> None:
        self.flow = flow
        self.cleared = frozenset[int]().union(*(flow.slice(place) for place in right))
        self.told: list[tuple[Deviation, frozenset[int]]] = []
        self.inside = frozenset[int]()

    def wrong_inside(self, call: str) -> None:
        """Note the operations from which a layer's wrong value comes, those of its further inputs, too."""
        self.inside |= self.flow.slice(("leave", call))

    def sends_back(self, place: Place) -> bool:
        """Return whether the value at a place goes through operations that give wrong values.

        The gradient that comes back from them is then wrong, too, and says nothing new.
        """
        users = self.flow.users(place) - {self.flow.handed.get(place)}
        return not users.isdisjoint(self._wrong())

    def reaches_into(self, call: str) -> bool:
        """Return whether the input of a module, or its own code, goes through operations that give wrong values."""
        own = (self.flow.operations[number].modules[-1] for number in self._wrong())
        return self.sends_back(("enter", call)) or layer_of(call) in own

    def _wrong(self) -> frozenset[int]:
        return self.inside.union(*(left for _, left in self.told))

    def place(self, found: Deviation) -> Deviation:
        """Return a deviation with the module that contains it, and with the cause that may have reached it.

        A cause passes through sums unchanged, which `Carried` recognises. After other operations it is a different
        difference.
        """
        whole = self.flow.slice((found.side, found.call))
        left = whole - self.cleared or whole
        # If all of them are right, the module that calls the layer gives it a different value.
        layer = self.flow.module_around(self.flow.computed(whole - self.cleared), found.call) or NETWORK
        reached = [d for d, other in self.told if not left.isdisjoint(other) and found.size <= LARGER * d.size]
        sums = all(self.flow.operations[number].name in {*SUMS, HANDED, GIVEN} for number in left)
        self.told.append((found, left))
        return replace(found, layer=layer, lead=reached[0].lead if reached and not sums else found.lead)

    def modules(self) -> frozenset[str]:
        """Return the modules around the operations of the reported mistakes, and around the calls that showed them."""
        operations = (self.flow.operations[number] for _, left in self.told for number in left)
        callers = (self.flow.callers.get(found.call, ()) for found, _ in self.told)
        return frozenset[str]().union(*(operation.modules for operation in operations), *callers)

    def gradient(self, found: Deviation) -> Deviation:
        """Return a wrong gradient that comes back to a call, with the module that it comes through."""
        return replace(
            found, layer=self.flow.module_around(self.flow.users(("leave", found.call)), found.call) or NETWORK
        )


class _Comparison:
    """Two runs in one mode, compared place by place."""

    def __init__(
        self, reference: RecordedRun, port: RecordedRun, leaf: Collection[str], train: bool, flow: Flow
    ) -> None:
        self.reference, self.port, self.leaf, self.train = reference, port, leaf, train
        self.seen: set[str] = set()
        self.before = ""
        self.remembered: set[str] = set()
        self.arrived = _wrong(port.inputs, reference.inputs, FORWARD)
        self.computed = _wrong(port.outputs, reference.outputs, FORWARD)
        self.ends = _wrong(port.values, reference.values, FORWARD)
        wrong = {"enter": self.arrived, "leave": self.computed, "end": self.ends}
        self.wrong = {(side, call) for side, calls in wrong.items() for call in calls}
        self.seen_places = {(side, call) for side in wrong for call in port.seen_at(side)}
        self.suspects = Suspects(flow, self.seen_places - self.wrong)

    def _seen_at(self, side: str, call: str, layer: str = "") -> Deviation:
        """Return the deviation at a place: in a layer, or between layers if no layer is named."""
        size = _far(self.port.seen_at(side), self.reference.seen_at(side), call)
        aspect = "output" if layer else "between"
        found = Deviation(layer, aspect, self.train, call, self.before, side, size=size, lead=layer or f"{side} {call}")
        return found if layer else self.suspects.place(found)

    def within(self) -> dict[str, frozenset[Place]]:
        """Return the places in the code of each module."""
        found: dict[str, set[Place]] = {}
        for side, call in self.seen_places:
            if side == "enter":
                found.setdefault(self.suspects.flow.callers.get(call, ("",))[-1], set()).add((side, call))
            elif layer_of(call) not in self.leaf:
                found.setdefault(layer_of(call) if side == "leave" else "", set()).add((side, call))
        return {module: frozenset(places) for module, places in found.items()}

    def forward(self) -> Iterator[Deviation]:
        """Yield the deviations of the forward pass."""
        carried, left = Carried(), set[str]()
        port, reference = self.port, self.reference
        for event, call, around in reference.events:
            name = layer_of(call)
            if event == "enter" and call in self.arrived:
                if carried.again(port.inputs[call], reference.inputs[call]):
                    continue
                self.seen |= {layer_of(around[-1]) if around else NETWORK}
                yield self._seen_at("enter", call)
            elif event == "leave" and call in self.computed:
                self.seen |= {name}
                if name in self.leaf:
                    self.suspects.wrong_inside(call)
                    # What a layer takes besides its first input may be any earlier value, to which a gradient returns.
                    self.remembered |= left if self.suspects.flow.takes_more(call) else set()
                yield self._seen_at("leave", call, name if name in self.leaf else "")
            if event == "leave":
                self.before = call
                left.add(call)
        for name in sorted(self.ends):
            self.seen |= {NETWORK}
            if not carried.again(port.values[name], reference.values[name]):
                yield self._seen_at("end", name)

    def of_loss_and_statistics(self) -> Iterator[Deviation]:
        """Yield a wrong loss of right outputs, and wrong statistics of right layers."""
        ours, theirs = self.reference.loss, self.port.loss
        if not self.ends and not math.isclose(theirs, ours, rel_tol=FORWARD, abs_tol=FORWARD):
            self.seen |= {NETWORK}  # then the gradients that it sends into the network are wrong, too
            size = abs(theirs - ours) / (abs(ours) or 1.0)
            yield Deviation(LOSS, "loss", self.train, LOSS, self.before, size=size, lead=LOSS)
        places = {layer_of(call): i for i, (_, call, _) in enumerate(self.reference.events)}
        wrong = _wrong(self.port.statistics, self.reference.statistics, FORWARD)
        for name in sorted(wrong, key=lambda n: (places.get(n.rpartition(".")[0], len(places)), n)):
            if (layer := name.rpartition(".")[0]) not in self.seen:
                self.seen |= {layer}
                size = _far(self.port.statistics, self.reference.statistics, name)
                yield Deviation(layer, "statistics", self.train, layer, size=size, lead=layer)

    def _given_again(self, entering: Collection[str], parameters: Collection[str]) -> set[str]:
        """Return the calls with another gradient only because PyTorch gives one tensor twice: as query and as key.

        The two gradients then are summed in front of the layer, and a port that computes the tensor twice has two.
        """
        takes_more = self.suspects.flow.takes_more
        return {call for call in entering if takes_more(call) and layer_of(call) not in parameters}

    def _before(self, calls: Collection[str]) -> set[str]:
        """Return the calls that end before the last of some calls begins."""
        events = [(event, call) for event, call, _ in self.reference.events]
        last = max((events.index(("enter", call)) for call in calls), default=0)
        return {call for event, call in events[:last] if event == "leave"}

    def backward(self, shared: Collection[str]) -> Iterator[Deviation]:
        """Yield the deviations of the backward pass, from the end of the network."""
        ours, theirs, seen = self.reference, self.port, self.seen
        entering = _wrong(theirs.input_gradients, ours.input_gradients, BACKWARD)
        leaving = _wrong(theirs.output_gradients, ours.output_gradients, BACKWARD)
        wrong = _wrong(theirs.parameters, ours.parameters, BACKWARD)
        # If the shapes of a layer do not fit, the port continues with the layer's own output. A later mistake then
        # reaches its gradients.
        passed = {layer_of(call) for call in ours.outputs if call not in theirs.outputs}
        reached = {*shared, *passed} if seen else set[str]()
        # What a layer gives besides its first output takes the gradient past the place that is compared.
        trained = {name.rpartition(".")[0] for name, gradient in ours.parameters.items() if gradient.any()}
        elsewhere = {layer_of(call) for call in ours.outputs if call not in ours.output_gradients} & trained
        reached |= elsewhere
        parameters = {n.rpartition(".")[0] for n in wrong} - reached
        entering = {call for call in entering if layer_of(call) not in elsewhere}
        entering = {call for call in entering if layer_of(call) not in passed or not seen}
        entering -= (again := self._given_again(entering, parameters))
        self.remembered |= self._before(again)
        after = ""
        for event, call, around in reversed(ours.events):
            name, outer = layer_of(call), layer_of(around[-1]) if around else NETWORK
            back = event == "leave" and call in leaving and outer not in seen and call not in self.remembered
            own = event == "enter" and (call in entering or name in parameters) and name not in seen
            if back and not self.suspects.sends_back((event, call)):
                seen |= {outer}
                size = _far(theirs.output_gradients, ours.output_gradients, call)
                found = Deviation(outer, "gradient between", self.train, call, call, after=after, size=size)
                yield self.suspects.gradient(replace(found, lead=f"gradient {call}"))
            elif own and (name in self.leaf or not self.suspects.reaches_into(call)):
                seen |= {name}
                aspect = "gradient" if name in self.leaf else "gradient between"
                sizes = [_far(theirs.parameters, ours.parameters, n) for n in wrong if n.rpartition(".")[0] == name]
                sizes += [_far(theirs.input_gradients, ours.input_gradients, call)] if call in entering else []
                size = max(sizes)
                yield Deviation(name, aspect, self.train, call, call, size=size, lead=name)
            after = call if event == "enter" else after
