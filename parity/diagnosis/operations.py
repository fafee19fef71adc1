"""Name a known mistake between layers: an activation, a pool, a sum, a reshape that is not PyTorch's.

The experiment: a trap is planted in the operations that the reference's own code calls, while every layer hands on what
it gave before. What then arrives at each layer is what a port with this mistake would hand to it; likewise the gradient
that comes back to each layer, where every layer hands back what it did before.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parity.diagnosis.forced_runs import RecordedRun
from parity.diagnosis.localise import BACKWARD, FORWARD
from parity.diagnosis.search import search
from parity.numerics import bounds
from parity.numerics.layouts import Tensors, mapped
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.taps import Tap
from parity.traps.catalogue import OPERATIONS
from parity.traps.planting import INPUT
from parity.traps.trap import Trap

# Operations whose parts a mistake in the next one may need, and those of them that change their first argument.
REMEMBERED = ("add", "add_", "__add__", "__iadd__", "__radd__", "relu", "relu_")
CHANGING = ("add_", "__iadd__", "relu_")


class UsedFunctions(TorchFunctionMode):
    """The names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = {INPUT}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class PlantedCalls(TorchFunctionMode):
    """One mistake in the calls of its functions: in all of them, or in the one with this number."""

    def __init__(self, trap: Trap, only: int | None = None) -> None:
        super().__init__()
        self.trap, self.functions = trap, frozenset(trap.names)
        self.only, self.made = only, 0
        self.behind: list[str] = []
        self.tap = _HandsOn(None, False)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.tap.busy:
            return func(*args, **kwargs)
        if name in self.functions:
            self.behind.append(self.tap.left)
            if self.only in (None, len(self.behind) - 1):
                value = self._made(func, args, kwargs)
                if value is not None:
                    return value
        parts = tuple(a.clone() if isinstance(a, Tensor) and name in CHANGING else a for a in args)
        value = func(*args, **kwargs)
        if name in REMEMBERED and isinstance(value, Tensor):
            value.made_of = (name.strip("_"), parts)  # pyright: ignore[reportAttributeAccessIssue]
        return value

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The value with the mistake; None where this call cannot have it."""
        if self.trap.plant is None:
            return None
        try:
            value = self.trap.plant(func, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
            return None
        self.made += value is not None
        return value

    def inputs(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The network's inputs, where the mistake is made in them."""
        if INPUT not in self.functions:
            return given

        def change(_: str, x: Tensor) -> Tensor:
            value = self._made(None, (x,), {}) if x.is_floating_point() else None
            return x if value is None else value

        return mapped(given, change)


class _HandsOn(Tap):
    """Every layer hands on what the reference's gave, whatever reaches it; with gradients, backward too."""

    def __init__(self, run: RecordedRun | None, gradients: bool) -> None:
        self.run, self.gradients = run or RecordedRun(), gradients
        self.seen: dict[tuple[str, str], np.ndarray] = {}
        self.handed: dict[str, Tensor] = {}
        self.left, self.terms, self.busy = "", [], False

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Nothing is planted in what is done here."""
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
        with self._own():
            self.seen["enter", name] = x.detach().clone().numpy()
            if not self.gradients or name not in self.run.inputs:
                return x
            return self._leaf(name, x, self.run.inputs, self.run.input_gradients).clone()

    def leave(self, name: str, y: Tensor) -> Tensor:
        with self._own():
            self.seen["leave", name] = y.detach().clone().numpy()
            self.left = name
            if name not in self.run.outputs:
                return y
            self.handed[name] = self._leaf(name, y, self.run.outputs, self.run.output_gradients)
            return self.handed[name].clone()

    def came_back(self, loss: Tensor, probe: Probe) -> None:
        """Records the gradient that comes back to every layer."""
        for value, gradient in self.terms:
            loss = loss + (value * gradient).sum()
        run_pytorch.backward(loss, probe)
        for name, leaf in self.handed.items():
            back = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            self.seen["gradient", name] = back.detach().numpy()


@dataclass(frozen=True)
class DifferingPlace:
    """Where something came out otherwise.

    Attributes:
        side: `enter` or `leave` of a call, or `end` for an output of the network, whose name `call` is then; `gradient`
            for what comes back to the exit of a call.
        got: what the port has there.
    """

    side: str
    call: str
    train: bool
    got: np.ndarray


@dataclass(frozen=True)
class ReferenceNetwork:
    """The network that mistakes are planted in.

    Attributes:
        names: of the modules that are recorded.
        runs: by mode, what they give without a mistake.
    """

    net: nn.Module
    probe: Probe
    names: Collection[str]
    runs: Mapping[bool, RecordedRun]

    def with_mistake(self, planted: PlantedCalls, train: bool, gradients: bool) -> dict[tuple[str, str], np.ndarray]:
        """What is seen at every place; up to where it ends, where the mistake gives shapes that do not fit."""
        net, tap = copy.deepcopy(self.net).train(train), _HandsOn(self.runs[train], gradients)
        planted.tap, planted.behind = tap, []
        try:
            with torch.set_grad_enabled(gradients), run_pytorch.tapped(net, tap, self.names), planted:
                inputs = planted.inputs(run_pytorch.inputs_of(self.probe, grad=gradients))
                values = run_pytorch.run(net, self.probe, inputs)
            if gradients:
                tap.came_back(run_pytorch.loss_of(self.probe, values), self.probe)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return tap.seen
        return tap.seen | {("end", name): value for name, value in run_pytorch.outputs(values).items()}


def explain(reference: ReferenceNetwork, places: Sequence[DifferingPlace], before: str) -> tuple[Trap, ...]:
    """Return the trap that gives what the port has at all `places`: planted in all of its calls, or in one.

    Args:
        places: all of outputs, or all of gradients.
        before: the call after which the first place stands; only there a single call is looked for.
    """
    used = UsedFunctions()
    with torch.no_grad(), used:
        run_pytorch.run(copy.deepcopy(reference.net).eval(), reference.probe, run_pytorch.inputs_of(reference.probe))
    gradients = places[0].side == "gradient"
    known = [t for t in OPERATIONS if t.gradient is gradients and not used.names.isdisjoint(t.names)]

    def differing(traps: tuple[Trap, ...]) -> set[str] | None:
        (trap,) = traps
        planted = PlantedCalls(trap)
        left = _differing(reference, planted, places)
        if left is not None and not left:
            return left
        calls = [i for i, behind in enumerate(planted.behind) if behind == before] if planted.made > 1 else []
        single = (_differing(reference, PlantedCalls(trap, only), places) for only in calls)
        return next((found for found in single if found is not None and not found), left)

    return search(known, differing)


def _differing(reference: ReferenceNetwork, planted: PlantedCalls, places: Sequence[DifferingPlace]) -> set[str] | None:
    """Return the first place that still differs, or an empty set; None where no call can have the mistake."""
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
            if have is None or bounds.distance(have, got) > allowed * (bounds.norm(got) or 1.0):
                return {f"{place.side} {place.call}"}
    return set()
