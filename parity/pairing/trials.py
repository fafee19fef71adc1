"""Runs of two models under a pairing: what arrives at each layer, what it gives, and how far that is from PyTorch's.

The weights that both models run with hide nothing (`running.probes.varied`), so that a layer which a fresh model keeps
silent is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.numerics.layouts import Tensors, aligned, counterparts, cut, layout_of, leaves, to_flax, wide
from parity.numerics.pins import Pins
from parity.numerics.quantities import Probe
from parity.pairing.blocks import blocks
from parity.pairing.pairs import Pair, Pairing
from parity.running import contractions, intermediates, inventory, lifted_flax
from parity.running import flax as run_flax
from parity.running import pytorch as run_pytorch
from parity.running.contractions_flax import flax_factors, flax_uses
from parity.running.contractions_pytorch import TorchDependences, TorchUses
from parity.running.flax import Functional
from parity.running.intermediates import Mark
from parity.running.model_layers import SECOND, ModelLayer
from parity.running.raised import RaisesError, raising
from parity.running.taps import Recorder, Tap, layer_of
from ports.errors import UserError

TOLD = 10.0  # so many times as far must every other way be
AGREES = 1e-6  # a distance, relative to its size, that is no difference: some models compute in float32 somewhere
NOISE = 1e-12  # of the outputs of one model that computes in float64
SKETCH = 4096  # numbers of an array that are looked at
TRIALS = 600  # runs under other pairings, before it is given up
NOWHERE = (float("inf"), 0.0)  # distance and part of what one way does not have
ROUNDS = 8  # runs in which layers follow what arrives at them

# Gives the Flax model under a pairing: the names that its modules are recorded under, and numbers in place of PyTorch's
# weights, if any.
Build = Callable[[Pairing, Mapping[str, str], Mapping[str, np.ndarray] | None], Functional]


@dataclass(frozen=True)
class Unit:
    """A module of each model, with all pairs of tensors that are exchanged together where the two are exchanged."""

    torch: str
    flax: str
    pairs: tuple[Pair, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from all other units, whatever it is paired with."""
        return tuple(p.torch.name for p in self.pairs)

    @property
    def ordered(self) -> list[Pair]:
        """The pairs, in an order that is the same for all units of a signature."""
        return sorted(self.pairs, key=lambda p: str(p.torch.signature))

    @property
    def signature(self) -> tuple[str, ...]:
        """What another unit must have to be exchanged with this one."""
        return tuple(str(p.torch.signature) for p in self.ordered)

    @property
    def content(self) -> list[bytes]:
        """The numbers: between units that hold the same ones nothing can be exchanged."""
        return [p.torch.values[leaf].tobytes() for p in self.pairs for leaf in sorted(p.torch.values)]

    @property
    def tensors(self) -> list[str]:
        """PyTorch's names of the tensors, in an order that is the same for all units of a signature."""
        return [p.torch.tensors[leaf] for p in self.ordered for leaf in sorted(p.torch.tensors)]

    def under(self, pairing: Pairing) -> Unit:
        """The same modules of PyTorch under another pairing."""
        pairs = tuple(p for p in pairing.pairs if p.torch.name in self.key)
        return Unit(self.torch, module(pairs[0].flax), pairs)


def units(pairing: Pairing, chosen: Callable[[Pair], bool]) -> list[Unit]:
    """The modules of the chosen pairs."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for p in pairing.pairs:
        if chosen(p):
            found.setdefault((module(p.torch), module(p.flax)), []).append(p)
    return [Unit(*names, tuple(pairs)) for names, pairs in found.items()]


def module(layer: ModelLayer) -> str:
    """The module that is exchanged with a layer: the owner of a module's own parameter."""
    return layer.owner if layer.leaf else layer.name


def exchanged(pairing: Pairing, group: Iterable[Unit], order: Iterable[Unit]) -> Pairing:
    """The pairing with the Flax layers of some units in another order."""
    new = {}
    for mine, other in zip(group, order, strict=True):
        pairs = zip(mine.ordered, other.ordered, strict=True)
        new |= {p.torch.name: replace(p, flax=q.flax) for p, q in pairs}
    return replace(pairing, pairs=tuple(new.get(p.torch.name, p) for p in pairing.pairs))


@dataclass(frozen=True)
class Run:
    """What a run of the Flax model says of a pairing.

    Attributes:
        pairing: with the layers that followed what arrived at them.
        sites: how far each input and output of a layer and each output of the model is, in the order of the run.
        distance: of the outputs of the model, the largest.
        seen: PyTorch's modules whose counterpart got the same input.
    """

    pairing: Pairing
    sites: Mapping[str, float]
    distance: float
    seen: frozenset[str]

    @property
    def agrees(self) -> bool:
        """Whether both models give the same outputs."""
        return self.distance <= AGREES

    @property
    def score(self) -> int:
        """How many sites agree."""
        return sum(far <= AGREES for far in self.sites.values())

    def reaches(self, group: Iterable[Unit]) -> bool:
        """Whether a unit of a group is called before the first site that differs, or it is not seen when it is."""
        names = list(self.sites)
        first = next((i for i, name in enumerate(names) if self.sites[name] > AGREES), len(names))
        places = {name.removeprefix("into "): i for i, name in enumerate(names) if name.startswith("into ")}
        return any(places.get(unit.flax, -1) < first for unit in group)


class _Handing(Recorder):
    """Keeps what arrives at the layers and what they give, and hands on what PyTorch's layers gave.

    Args:
        given: what PyTorch gives its layers; handed to the port's, too, so that each layer is judged by itself.
    """

    def __init__(self, outputs: Tensors, given: Tensors | None = None) -> None:
        super().__init__(inputs=True)
        self.expected, self.given = outputs, given or {}

    def enter(self, name: str, x: Any) -> Any:
        return handed(super().enter(name, x), self.given.get(name))

    def leave(self, name: str, y: Any) -> Any:
        super().leave(name, y)
        return handed(y, self.expected.get(name))


class _Following(Recorder):
    """Pairs layers by what arrives at them, and hands on what PyTorch's layers gave.

    Args:
        always: also where something else arrived.
    """

    def __init__(self, trial: Trial, known: Sequence[Unit], free: Collection[str], always: bool) -> None:
        super().__init__()
        self.trial, self.free, self.always = trial, free, always
        self.mine = {unit.flax: unit.torch for unit in known}
        self.theirs = {unit.torch: unit.flax for unit in known}
        self.signature = {unit.torch: unit.signature for unit in known}
        self.layers = {unit.flax for unit in known if not unit.pairs[0].torch.leaf}
        self.entered: dict[str, bool] = {}
        self.sites: dict[str, float] = {}

    def _parts(self, call: str) -> tuple[str, str]:
        """The module of a call, and what says which call of it this is."""
        name = call if call in self.mine else layer_of(call)
        return name, call.removeprefix(name)

    def enter(self, name: str, x: Any) -> Any:
        own, count = self._parts(name)
        array = np.asarray(x)
        if not count and self.mine[own] in self.free and not self._arrived(self.mine[own], array):
            self._exchange(own, array)
        far = self._far(self.trial.given.get(self.mine[own] + count), array)
        self.entered[name] = far <= AGREES
        self.sites[f"into {name}"] = far
        return x

    def _exchange(self, own: str, x: np.ndarray) -> None:
        mine = self.mine[own]
        for other in self.theirs:
            alike = other in self.free and self.signature[other] == self.signature[mine]
            if alike and self.theirs[other] not in self.entered and self._arrived(other, x):
                self.mine[own], self.mine[self.theirs[other]] = other, mine
                self.theirs[mine], self.theirs[other] = self.theirs[other], own
                return

    def _arrived(self, mine: str, x: np.ndarray) -> bool:
        return self._far(self.trial.given.get(mine), x) <= AGREES

    @staticmethod
    def _far(expected: np.ndarray | None, got: np.ndarray) -> float:
        return float("inf") if expected is None else distance(got, expected)

    def leave(self, name: str, y: Any) -> Any:
        own, count = self._parts(name)
        expected = self.trial.handed.get(self.mine[own] + count)
        self.sites[f"out of {name}"] = self._far(expected, np.asarray(y))
        return handed(y, expected) if (self.always or self.entered.get(name)) and own in self.layers else y


def _followed(array: Any) -> np.ndarray | None:
    """Return the identities that a variable holds; None where none is followed."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return None
    numbers = np.asarray(array, np.float64)
    return numbers if (numbers >= 0).any() else None


def handed(y: Any, expected: np.ndarray | None) -> Any:
    """PyTorch's output of a layer in place of Flax's, where the shapes are the same but for their layout or heads."""
    if expected is not None and cut(np.shape(y), expected.shape):
        return jnp.asarray(expected.reshape(np.shape(y)), y.dtype)
    layout = None if expected is None else layout_of(np.asarray(y), expected)
    return y if expected is None or layout is None else jnp.asarray(to_flax(expected, layout), y.dtype)


@dataclass
class Trial:
    """The models, run with the layers paired one way or another.

    Attributes:
        reference: PyTorch's model in float64.
        given, handed: what PyTorch gives its modules, and what they give, by the names of the calls.
        values: PyTorch's outputs.
        lifts: whether the Flax model runs with casts that give float64; None before the first run.
        marks: of what PyTorch computes on its way; None before they are asked for.
        program: JAX's program of the Flax model; None before it is asked for.
    """

    build: Build
    reference: torch.nn.Module
    fed: Probe
    trials: int = 0
    lifts: bool | None = None
    given: Tensors = field(default_factory=dict)
    handed: Tensors = field(default_factory=dict)
    values: Tensors = field(default_factory=dict)
    marks: list[Mark] | None = None
    program: Any = None

    def __post_init__(self) -> None:
        record = run_pytorch.Outputs(copies=True, inputs=True)
        self.reference = run_pytorch.promote(self.reference).eval()
        self.values = self._outputs(record)
        self.given, self.handed = run_pytorch.numpy(record.inputs), run_pytorch.numpy(record.outputs)

    def _outputs(self, record: run_pytorch.Outputs | None = None) -> Tensors:
        names = {name for name, _ in self.reference.named_modules() if name} if record else set()
        tap = run_pytorch.Tap() if record is None else record
        with raising("the PyTorch model"), torch.no_grad(), run_pytorch.tapped(self.reference, tap, names):
            values = run_pytorch.run(self.reference, self.fed, run_pytorch.inputs_of(self.fed))
        return run_pytorch.outputs(values)

    def run(self, pairing: Pairing, names: Mapping[str, str], tap: Recorder) -> Tensors:
        """The Flax model's outputs, under PyTorch's names and in PyTorch's layouts.

        Args:
            names: what its modules are called in `tap`.

        Raises:
            UserError: too many ways were tried.
        """
        self.trials += 1
        if self.trials > TRIALS:
            raise UserError(
                f"too many layers could be exchanged to try each way (more than {TRIALS}); say which is which with "
                "names=, or give the layers of both models the same names; nothing was written"
            )
        net = self.build(pairing, names, None)
        inputs, keywords = run_flax.inputs_of(self.fed)

        def forward(tap: Tap) -> Any:
            return net.forward(net.params, net.stats, inputs, keywords, False, tap)[0]

        if self.lifts is None:
            self.lifts = lifted_flax.lifts(lambda: forward(Tap()))
        with raising(), lifted_flax.casts_lifted(Pins("")) if self.lifts else nullcontext():
            values = forward(tap)
        found = dict(leaves(values, "output"))
        return {name: aligned(found[own], self.values[name]) for own, name in counterparts(found, self.values).items()}

    def follow(self, pairing: Pairing, free: Callable[[Pair], bool], always: bool = False) -> Run:
        """Run until no free layer gets what another layer gets in PyTorch; such a layer is paired with that one.

        Args:
            always: hand on PyTorch's outputs also where another input arrived, so that no mistake reaches what follows.
        """
        for _ in range(ROUNDS):
            known = self._seen(pairing)
            movable = {unit.torch for unit in known if all(map(free, unit.pairs))}
            tap = _Following(self, known, movable, always)
            values = self.run(pairing, {unit.flax: unit.flax for unit in known}, tap)
            moved = [unit for unit in known if tap.theirs[unit.torch] != unit.flax]
            if not moved:
                far = {name: distance(got, self.values[name]) for name, got in values.items() if name in self.values}
                seen = frozenset(unit.torch for unit in known if tap.entered.get(unit.flax))
                return Run(pairing, {**tap.sites, **far}, max(far.values(), default=float("inf")), seen)
            by_flax = {unit.flax: unit for unit in known}
            pairing = exchanged(pairing, moved, [by_flax[tap.theirs[unit.torch]] for unit in moved])
        return Run(pairing, {}, float("inf"), frozenset())

    def _seen(self, pairing: Pairing) -> list[Unit]:
        """The modules that are called as one in both models."""
        found = [
            unit
            for unit in units(pairing, lambda _: True)
            if unit.torch and unit.flax and inventory.module_of(unit.torch) == unit.torch
        ]
        mine, theirs = ([getattr(unit, side) for unit in found] for side in ("torch", "flax"))
        return [unit for unit in found if mine.count(unit.torch) == theirs.count(unit.flax) == 1]

    def taken(self, pairing: Pairing, alone: bool = False, around: bool = False) -> tuple[_Handing, Tensors]:
        """Run with PyTorch's outputs handed on at every layer: the layers by PyTorch's names, and the outputs.

        Args:
            alone: hand PyTorch's inputs to the layers, too.
            around: do the same at the modules around layers.
        """
        names = {unit.flax: unit.torch for unit in self._seen(pairing)}
        if around:
            names = blocks(pairing, self.handed) | names
        tap = _Handing(self.handed, self.given if alone else None)
        return tap, self.run(pairing, names, tap)

    def plain(self, pairing: Pairing) -> float:
        """Return how far the outputs of the models are, the largest distance."""
        values = self.run(pairing, {}, Recorder())
        far = [distance(got, self.values[name]) for name, got in values.items() if name in self.values]
        return max(far, default=float("inf"))

    def common(self, pairing: Pairing, lengths: Collection[int] = ()) -> int:
        """Return how many arrays that PyTorch computes on its way the port computes, too.

        Args:
            lengths: of lists of layers, which one model may compute in one array.
        """
        self.trials += 1
        if self.marks is None:
            seen = intermediates.TorchMarks(lengths)
            self._watched(seen)
            self.marks = seen.found
        net = self.build(pairing, {}, None)
        with raising():
            theirs = intermediates.flax_marks(self._plainly(net), (net.params, net.stats), lengths)
        return intermediates.common(self.marks, theirs)

    def _plainly(self, net: Functional) -> Callable[[Any, Any], Any]:
        """Return the Flax model as a function of its variables."""
        inputs, keywords = run_flax.inputs_of(self.fed)
        return lambda params, stats: net.forward(params, stats, inputs, keywords, False, Tap())[0]

    def contracting(self, pairings: Sequence[Pairing], names: Sequence[str]) -> list[tuple[int, int, int]]:
        """Return for each pairing how many numbers of some tensors both models sum with the same others.

        The numbers are those of `contractions.agreeing`.

        Args:
            names: PyTorch's, of the tensors.
        """
        state = self.reference.state_dict()
        numbers: Tensors = {}
        ends = np.cumsum([state[name].numel() for name in names])
        for name, some in zip(names, np.split(np.arange(ends[-1], dtype=np.float64), ends[:-1]), strict=True):
            numbers[name] = some.reshape(tuple(state[name].shape))
        marked = [(state[name], torch.from_numpy(numbers[name])) for name in names]
        seen = TorchUses(marked, self._still(state))
        with suppress(RaisesError):  # a model may run, and have operations that nothing can follow
            self._watched(seen)
            return [contractions.agreeing(seen.found, self._flax_uses(pairing, numbers, ends)) for pairing in pairings]
        return [(0, 0, 0)] * len(pairings)

    def depending(self, pairings: Sequence[Pairing]) -> list[int]:
        """Return for each pairing how many tensors both models multiply with what is computed from the same tensors."""
        state = self.reference.state_dict()
        names = [*dict.fromkeys(name for p in pairings[0].pairs for name in p.torch.tensors.values() if name in state)]
        seen = TorchDependences([state[name] for name in names], self._still(state))
        with suppress(RaisesError):  # as in `contracting`
            self._watched(seen)
            mine = contractions.dependences(seen.factors)
            marks = {name: np.full(tuple(state[name].shape), float(i)) for i, name in enumerate(names)}
            found = [contractions.dependences(self._flax_factors(pairing, marks)) for pairing in pairings]
            return [sum(theirs.get(i) == some for i, some in mine.items()) for theirs in found]
        return [0] * len(pairings)

    def _watched(self, mode: Any) -> None:
        """Run PyTorch's model under a mode that sees its operations."""
        with raising("the PyTorch model"), torch.no_grad(), mode:
            run_pytorch.run(self.reference, self.fed, run_pytorch.inputs_of(self.fed))

    def _still(self, state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return PyTorch's tensors that do not depend on the inputs."""
        return [*self.reference.parameters(), *self.reference.buffers(), *state.values()]

    def _flax_factors(self, pairing: Pairing, marks: Tensors) -> list[contractions.Factor]:
        program, arrays = self._traced(pairing, marks)
        with raising():
            return flax_factors(program, arrays, len(marks))

    def _flax_uses(self, pairing: Pairing, numbers: Tensors, ends: np.ndarray) -> list[contractions.Use]:
        program, arrays = self._traced(pairing, numbers)
        with raising():
            return flax_uses(program, arrays, ends)

    def _traced(self, pairing: Pairing, numbers: Tensors) -> tuple[Any, list[np.ndarray | None]]:
        """Return JAX's program of the Flax model, and what each of its variables holds of some numbers.

        Args:
            numbers: by PyTorch's names in place of the weights.
        """
        state = self.reference.state_dict()
        free = {n: np.full(tuple(a.shape), contractions.MOVED) for n, a in state.items() if a.is_floating_point()}
        whole = {n: a.numpy() for n, a in state.items()} | free | numbers
        for name in whole:
            if name.rpartition(".")[2].startswith(SECOND):  # a port's cell has no place for what is folded away
                whole[name] = np.where(state[name].numpy() == 0, 0, whole[name])
        net = self.build(pairing, {}, whole)
        if self.program is None:
            with raising():
                self.program, _ = lifted_flax.trace(self._plainly(net), (net.params, net.stats), Pins(""))
        return self.program, [_followed(x) for x in jax.tree.leaves((net.params, net.stats))]

    def alike(self, a: Unit, b: Unit) -> bool:
        """Return whether PyTorch gives two layers the same input, or it is not seen what it gives them."""
        mine, other = (self.given.get(unit.torch) for unit in (a, b))
        return mine is None or other is None or distance(mine, other) <= TOLD * AGREES

    def exchangeable(self, group: Sequence[Unit], floor: float) -> tuple[Unit, Unit] | None:
        """Return two units that PyTorch's outputs do not tell apart.

        All units of the group get the same numbers, and each in turn other ones. Where the outputs are the same
        whichever of two it was, nothing that comes out of the model says which is which.

        Args:
            floor: a distance of outputs that is no difference.
        """
        state = self.reference.state_dict()
        old = {name: state[name].clone() for unit in group for name in unit.tensors}
        same = [old[name] for name in group[0].tensors]
        rng = np.random.default_rng(0)
        other = [
            a * torch.from_numpy(rng.uniform(0.75, 1.25, tuple(a.shape))).to(a) if a.is_floating_point() else a
            for a in same
        ]
        outputs = []
        try:
            _put(state, group, same)
            for unit in group:
                _put(state, [unit], other)
                outputs.append(self._outputs())
                _put(state, [unit], same)
        finally:
            with torch.no_grad():
                for name, array in old.items():
                    state[name].copy_(array)
        for i, a in enumerate(group):
            for j, b in enumerate(group[:i]):
                far = [distance(outputs[i][name], array) for name, array in outputs[j].items()]
                if a.content != b.content and not any(floor < one < float("inf") for one in far):
                    return b, a
        return None


def sites(
    pairing: Pairing, trial: Trial, alone: bool = False, around: bool = False
) -> Mapping[str, tuple[float, float]]:
    """Return how far each layer's input and output and each output of the model are off, and which part agrees.

    Args:
        alone, around: as in `Trial.taken`.
    """
    tap, values = trial.taken(pairing, alone, around)
    sides = (("into", tap.inputs, trial.given), ("out of", tap.outputs, trial.handed), ("", values, trial.values))
    return {
        f"{side} {name}": (distance(np.asarray(got), expected[name]), equal_part(np.asarray(got), expected[name]))
        for side, found, expected in sides
        for name, got in found.items()
        if name in expected
    }


def moving(found: Sequence[Mapping[str, tuple[float, float]]]) -> list[str]:
    """Return the sites that tell ways apart.

    Args:
        found: the `sites` of each way.
    """
    return [site for site in found[0] if len({one.get(site) for one in found}) > 1]


def nearest(found: Sequence[Mapping[str, tuple[float, float]]]) -> int | None:
    """Return the way that is by far the nearest to PyTorch where the ways differ; None where no way is."""
    told = moving(found)
    far = sorted((max((one.get(site, NOWHERE)[0] for site in told), default=0.0), i) for i, one in enumerate(found))
    return far[0][1] if told and len(far) > 1 and far[0][0] * TOLD < far[1][0] else None


def _put(state: Mapping[str, torch.Tensor], group: Iterable[Unit], arrays: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for unit in group:
            for name, array in zip(unit.tensors, arrays, strict=True):
                state[name].copy_(array)


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """The distance of two arrays, relative to the second: of at most `SKETCH` of their numbers."""
    got = aligned(got, expected, cuts=True)
    if got.size != expected.size:
        return float("inf")
    step = max(1, expected.size // SKETCH)
    a, b = (wide(array.reshape(-1)[::step]) for array in (got, expected))
    far = float(np.linalg.norm(a - b)) / (float(np.linalg.norm(b)) or 1.0)
    return far if np.isfinite(far) else float("inf")


def equal_part(got: np.ndarray, expected: np.ndarray) -> float:
    """The part of an array's numbers that are another's, but for rounding; zeros, as of a ReLU, say nothing."""
    got = aligned(got, expected, cuts=True)
    if got.size != expected.size or not expected.size:
        return 0.0
    size = float(np.sqrt(np.mean(np.square(np.abs(wide(expected))))))
    telling = np.abs(expected.reshape(-1)) > 1e-6 * size
    near = np.abs(wide(got).reshape(-1) - expected.reshape(-1)) < 1e-6 * size
    return float(np.mean(near[telling])) if telling.any() else 0.0
