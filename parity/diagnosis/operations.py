"""Name a known mistake between layers: an activation, a pool, a sum, a reshape that is not PyTorch's.

The experiment: a trap is planted in the operations that the reference's own code calls, while every layer hands on what
it gave before. Each layer then gets the value that a port with this mistake would hand to it. The same holds for the
gradient that comes back to each layer, while every layer hands back its earlier gradient.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parity.diagnosis.forced_runs import RecordedRun
from parity.diagnosis.localise import BACKWARD, FORWARD
from parity.diagnosis.search import search
from parity.numerics import bounds
from parity.numerics.layouts import Tensors, leaves, mapped
from parity.numerics.pins import own_frame
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.taps import Tap
from parity.traps.catalogue import OPERATIONS
from parity.traps.operations.parts import RANDOM, Call, exchanged, fresh, name_of, reached, remember, replayed
from parity.traps.planting import INPUT
from parity.traps.trap import Trap


class _Watching(TorchFunctionMode):
    """Makes every tensor remember the call that made it, except calls of a tap itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tap, self.number = _HandsOn(None, False), 0
        self.readers: dict[int, list[weakref.ref[Call]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tap.busy:
            return func(*args, **kwargs)
        call = Call(name_of(func), func, args, kwargs, number=self.number, place=self.place())
        call = replace(call, args=[*call.given()], kw={**kwargs})
        self.number += 1
        if call.changing:
            self.keep_before(args[0], call[0])
        value = fresh(self.planted(call, args))
        value = func(*args, **kwargs) if value is None else value
        if call.changing:
            remember(args[0], call)
        remember(value, call)
        for tensor in call.tensors:
            self.readers.setdefault(id(tensor), []).append(weakref.ref(call))
        return value

    def keep_before(self, x: Tensor, copy: Tensor) -> None:
        """Give the calls that read a tensor so far a copy, because a call changes it now: `y[i] += expert(y[i])`."""
        for reader in self.readers.pop(id(x), ()):
            if (call := reader()) is not None:
                call.args[:] = exchanged(call.args, x, copy)  # pyright: ignore[reportIndexIssue]
                call.kw.update(exchanged(call.kw, x, copy))

    def place(self) -> str:
        """The file and line that a call comes from, if they are asked for."""
        return ""

    def planted(self, call: Call, args: Any) -> Any:
        """The value with a mistake; None if the call stays as it is."""
        raise NotImplementedError

    def inputs(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The network's inputs."""
        return given


def _names(call: Call) -> tuple[str, str]:
    return getattr(call.function, "__name__", ""), call.name


@dataclass(frozen=True)
class Named:
    """A known mistake in calls of functions.

    Attributes:
        calls: the PyTorch calls that have the mistake.
    """

    trap: Trap
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class DifferingPlace:
    """A place where the port's value differs.

    Attributes:
        side: `enter` or `leave` of a call, or `end` for an output of the network (then `call` is its name); `gradient`
            for the gradient that comes back to the exit of a call.
        got: the port's value there.
    """

    side: str
    call: str
    train: bool
    got: np.ndarray


class SeenCalls(_Watching):
    """The calls of a run, kept here if nothing else keeps them."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.kept: list[Call] = []

    def place(self) -> str:
        frame = own_frame()
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""

    def planted(self, call: Call, args: Any) -> Any:
        self.kept += [call] if self.keep else []


@dataclass(frozen=True)
class WayTo:
    """The computation on the way to a place that differs.

    Attributes:
        value: the reference's value there; None for a gradient.
        calls: the calls that computed it, in order.
        counted: gives an array with zeros at the positions that do not count.
        handed: by call of a layer, the output that it handed on.
        run: all calls of the run, in order, if they are kept.
    """

    place: DifferingPlace
    value: Tensor | None
    calls: Sequence[Call]
    counted: Callable[[np.ndarray], np.ndarray]
    handed: Mapping[str, Tensor]
    run: Sequence[Call]

    def possible(self, traps: Sequence[Trap]) -> dict[str, list[int]]:
        """By trap, the numbers of the calls that can have it."""
        by_name: dict[str, list[Trap]] = {}
        for trap in traps:
            for name in trap.names:
                by_name.setdefault(name, []).append(trap)
        found: dict[str, list[int]] = {trap.name: [] for trap in by_name.get(INPUT, ())}
        with torch.set_grad_enabled(self.place.side == "gradient"):
            for call in self.calls:
                known = {trap.name: trap for name in _names(call) for trap in by_name.get(name, ())}
                given = call.given()
                for name, trap in known.items():
                    if _planted(trap, call.function, given, call.kw) is not None:
                        found.setdefault(name, []).append(call.number)
                    given = call.given() if call.changing else given
        return found

    def arrives(self, trap: Trap, at: Sequence[int]) -> bool:
        """Return whether these calls with the mistake, recomputed alone, may give the port's value.

        Random values and gradients cannot be recomputed: then the answer is yes.
        """
        random = any(word in call.name for call in self.calls for word in RANDOM)
        if self.value is None or random or INPUT in trap.names:
            return True
        try:
            with torch.no_grad():
                value = replayed(self.value, self.calls, partial(_planted, trap), at)
                return _same(self.counted(value.numpy()), self.counted(self.place.got), FORWARD)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
            return False


def _planted(trap: Trap, function: Any, args: Any, kwargs: Any) -> Any:
    """The value with the mistake; None where this call cannot have it."""
    if trap.plant is None:
        return None
    try:
        return trap.plant(function, args, kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None


class PlantedCalls(_Watching):
    """One mistake in the calls of its functions: in all of them, or in the call with this number in the run."""

    def __init__(self, trap: Trap, only: int | None = None) -> None:
        super().__init__()
        self.trap, self.functions = trap, frozenset(trap.names)
        self.only = only
        self.changed: list[Call] = []

    @property
    def made(self) -> int:
        """In how many calls the mistake was made."""
        return len(self.changed)

    def planted(self, call: Call, args: Any) -> Any:
        if self.functions.isdisjoint(_names(call)):
            return None
        if self.only not in (None, call.number):
            return None
        value = _planted(self.trap, call.function, args, call.kw)
        self.changed += [call] if value is not None else []
        return value

    def inputs(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The network's inputs, if the mistake is in them."""
        if INPUT not in self.functions:
            return given

        def change(_: str, x: Tensor) -> Tensor:
            value = _planted(self.trap, None, (x,), {}) if x.is_floating_point() else None
            self.changed += [Call(INPUT, change, (x,), {})] if value is not None else []
            return x if value is None else value

        return mapped(given, change)


class _HandsOn(Tap):
    """Every layer hands on the output of the reference's layer, whatever reaches it; with gradients, also backward."""

    def __init__(self, run: RecordedRun | None, gradients: bool) -> None:
        self.run, self.gradients = run or RecordedRun(), gradients
        self.seen: dict[tuple[str, str], np.ndarray] = {}
        self.handed: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self.terms, self.busy = [], False
        self.wanted: tuple[str, str] | None = None
        self.reach: list[Call] = []
        self.found: Tensor | None = None

    def look(self, side: str, name: str, x: Tensor) -> None:
        """Keeps the calls that computed `x`, at the place in question."""
        if (side, name) == self.wanted:
            self.found, self.reach = x, reached(x)

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Plant nothing inside this block."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _leaf(self, name: str, value: Tensor, tensors: Tensors, gradients: Tensors) -> Tensor:
        if self.gradients and name in gradients and gradients[name].shape == value.shape:
            self.terms.append((value, torch.as_tensor(gradients[name])))
        new = torch.as_tensor(tensors[name]).clone()
        return new.requires_grad_(self.gradients and new.is_floating_point())

    def enter(self, name: str, x: Tensor) -> Tensor:
        self.look("enter", name, x)
        with self._own():
            self.seen["enter", name] = x.detach().clone().numpy()
            if not self.gradients or name not in self.run.inputs:
                return x
            return self._leaf(name, x, self.run.inputs, self.run.input_gradients).clone()

    def leave(self, name: str, y: Tensor) -> Tensor:
        self.look("leave", name, y)
        with self._own():
            self.seen["leave", name] = y.detach().clone().numpy()
            if name not in self.run.outputs:
                return y
            self.handed[name] = self._leaf(name, y, self.run.outputs, self.run.output_gradients)
            self.given[name] = self.handed[name].clone()
            return self.given[name]

    def came_back(self, loss: Tensor, probe: Probe) -> None:
        """Records the gradient that comes back to every layer."""
        for value, gradient in self.terms:
            loss = loss + (value * gradient).sum()
        run_pytorch.backward(loss, probe)
        for name, leaf in self.handed.items():
            back = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            self.seen["gradient", name] = back.detach().numpy()


@dataclass(frozen=True)
class ReferenceNetwork:
    """The network that mistakes are planted in.

    Attributes:
        names: of the modules that are recorded.
        runs: by mode, their results without a mistake.
    """

    net: nn.Module
    probe: Probe
    names: Collection[str]
    runs: Mapping[bool, RecordedRun]

    def with_mistake(self, planted: PlantedCalls, train: bool, gradients: bool) -> dict[tuple[str, str], np.ndarray]:
        """The values at every place; if the mistake gives shapes that do not fit, only up to that point."""
        tap = _HandsOn(self.runs[train], gradients)
        try:
            values = self._run(planted, tap, train, gradients)
            if gradients:
                tap.came_back(run_pytorch.loss_of(self.probe, values), self.probe)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return tap.seen
        return tap.seen | {("end", name): value for name, value in run_pytorch.outputs(values).items()}

    def on_the_way_to(self, place: DifferingPlace, keep: bool = False) -> WayTo:
        """What the reference computes on the way to a place.

        A gradient depends on calls after its place, so for gradients all calls of the run count.

        Args:
            keep: whether to keep all calls of the run.
        """
        gradients = place.side == "gradient"
        tap, watching = _HandsOn(self.runs[place.train], gradients), SeenCalls(gradients or keep)
        tap.wanted = (place.side, place.call)
        values = self._run(watching, tap, place.train, gradients)
        for name, value in leaves(values, "output"):
            if isinstance(value, Tensor):
                tap.look("end", name, value)
        calls = watching.kept if gradients else tap.reach
        return WayTo(place, tap.found, calls, self.probe.counted, tap.given, watching.kept)

    def _run(self, watching: _Watching, tap: _HandsOn, train: bool, gradients: bool) -> Any:
        net = copy.deepcopy(self.net).train(train)
        watching.tap, watching.number = tap, 0
        with torch.set_grad_enabled(gradients), run_pytorch.tapped(net, tap, self.names), watching:
            inputs = watching.inputs(run_pytorch.inputs_of(self.probe, grad=gradients))
            return run_pytorch.run(net, self.probe, inputs)


def explain(reference: ReferenceNetwork, places: Sequence[DifferingPlace]) -> tuple[Named, ...]:
    """Return the trap that gives the port's values at all `places`: planted in all of its calls, or in one.

    The computation on the way to the first place is repeated with each trap that some call on this way can have. The
    whole network runs only with the traps that give the port's value there.

    Args:
        places: either all for outputs, or all for gradients.
    """
    gradients = places[0].side == "gradient"
    traps = [trap for trap in OPERATIONS if trap.gradient is gradients]
    way = reference.on_the_way_to(places[0])
    possible = way.possible(traps)
    made: dict[str, tuple[Call, ...]] = {}

    def differing(traps: tuple[Trap, ...]) -> set[str] | None:
        (trap,) = traps
        calls = possible[trap.name]
        choices: list[int | None] = [None, *calls]
        for only in choices:
            if way.arrives(trap, calls if only is None else [only]):
                planted = PlantedCalls(trap, only)
                left = _differing(reference, planted, places)
                if left is not None and not left:
                    made[trap.name] = tuple(planted.changed)
                    return left
        return {f"{places[0].side} {places[0].call}"}

    found = search([trap for trap in traps if trap.name in possible], differing)
    return tuple(Named(trap, made[trap.name]) for trap in found)


def _same(have: np.ndarray | None, got: np.ndarray, allowed: float) -> bool:
    """Whether the port's numbers are those of the planted network."""
    return have is not None and bounds.distance(have, got) <= allowed * (bounds.norm(got) or 1.0)


def _differing(reference: ReferenceNetwork, planted: PlantedCalls, places: Sequence[DifferingPlace]) -> set[str] | None:
    """Return the first place that still differs, or an empty set; None if no call can have the mistake."""
    gradients = places[0].side == "gradient"
    allowed = BACKWARD if gradients else FORWARD
    for train in dict.fromkeys(place.train for place in places):
        seen = reference.with_mistake(planted, train, gradients)
        if not planted.made:
            return None
        for place in (p for p in places if p.train is train):
            have = seen.get((place.side, place.call))
            got = place.got if gradients else reference.probe.counted(place.got)
            have = have if have is None or gradients else reference.probe.counted(have)
            if not _same(have, got, allowed):
                return {f"{place.side} {place.call}"}
    return set()
