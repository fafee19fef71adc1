"""Whether layers that were paired by the order of their calls were paired rightly: decided by what they compute.

Two layers of the same type and shape can be exchanged without any shape telling. Here the Flax model runs once with
PyTorch's outputs handed on at every paired layer, so that a mistake elsewhere does not reach these layers. Where two of
them get different inputs, the inputs tell which is which. Where both get the same one (the query and the key of an
attention), they are exchanged, and what arrives at the layers behind them tells. What neither can tell is an error,
never a guess. So are two parameters of one module whose names say one thing and whose use another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity import inventory, run_flax, run_pytorch
from parity.layouts import Tensors, aligned, layout_of, to_flax
from parity.pairing import ORDER, Layer, Pair, Pairing
from parity.quantities import Probe
from parity.run_flax import Functional
from parity.taps import Recorder
from ports.errors import UserError

TOLD = 10.0  # so many times as far must every other way be
SKETCH = 4096  # numbers of an input that are looked at
TRIALS = 400  # runs with layers exchanged, before it is given up
PART = 0.05  # of a site's numbers that must agree, where all ways are far off
NOWHERE = (float("inf"), 0.0)  # distance and part of what one way does not have
MOST = 4  # layers that are tried in every order; of more, two at a time are exchanged

# Gives the Flax model with PyTorch's weights under a pairing; PyTorch's names of its recorded layers, by their own.
Build = Callable[[Pairing, Mapping[str, str]], Functional]


@dataclass(frozen=True)
class Unit:
    """A module of each model that were paired by their order, with all pairs of tensors that follow from it."""

    torch: str
    flax: str
    pairs: tuple[Pair, ...]

    @property
    def signature(self) -> tuple[str, ...]:
        """What another unit must have to be exchanged with this one."""
        return tuple(sorted(str(p.torch.signature) for p in self.pairs))

    @property
    def content(self) -> list[bytes]:
        """The numbers: between units that hold the same ones nothing can be exchanged."""
        return [p.torch.values[leaf].tobytes() for p in self.pairs for leaf in sorted(p.torch.values)]


def settled(pairing: Pairing, build: Build, reference: torch.nn.Module, fed: Probe) -> Pairing:
    """Return the pairing, with layers exchanged where computing says so.

    Raises:
        UserError: two layers that neither their inputs nor what comes of them tells apart.
    """
    units = _units(pairing)
    twins = [
        (a, b) for a, b in itertools.combinations(units, 2) if a.signature == b.signature and a.content != b.content
    ]
    leaves = _leaves(pairing)
    if not (twins or leaves):
        return pairing
    trial = _Trial(build, reference, fed)
    # First those that get the same input: what comes of them is the input of others.
    siblings = [twin for twin in twins if trial.alike(*twin)]
    for group in _groups(siblings):
        pairing = _decided(pairing, group, trial)
    if others := [twin for twin in twins if twin not in siblings]:
        inputs = trial.inputs(pairing)
        for group in _groups([twin for twin in others if not trial.told(*twin, inputs)]):
            pairing = _decided(pairing, group, trial)
    if leaves:
        _agreeing(pairing, trial)
    return pairing


def _leaves(pairing: Pairing) -> list[tuple[Pair, Pair]]:
    """Two parameters of one module that could be exchanged, of which one at least has another name in Flax."""
    own = [p for p in pairing.pairs if p.torch.leaf and not p.why.startswith("given")]
    return [
        (a, b)
        for a, b in itertools.combinations(own, 2)
        if (a.torch.owner, a.flax.owner, a.torch.values["value"].shape)
        == (b.torch.owner, b.flax.owner, b.torch.values["value"].shape)
        and (a.why + b.why).count("equal names") < 2
        and not np.array_equal(a.torch.values["value"], b.torch.values["value"])
    ]


def _agreeing(pairing: Pairing, trial: _Trial) -> None:
    """Raise where the models agree only if two parameters of a module are exchanged."""
    here = trial.sites(pairing)
    for a, b in _leaves(pairing):
        new = {a.torch.name: replace(a, flax=b.flax), b.torch.name: replace(b, flax=a.flax)}
        there = trial.sites(replace(pairing, pairs=tuple(new.get(p.torch.name, p) for p in pairing.pairs)))
        moving = [site for site in here if here[site] != there.get(site)]
        if moving and max(there.get(s, NOWHERE)[0] for s in moving) * TOLD < max(here[s][0] for s in moving):
            raise UserError(
                f"{a} and {b}: their names say so, but the models agree only if the two are exchanged; if the names "
                f"are right, say so with names={{{a.torch.name!r}: {a.flax.name!r}}}; nothing was written"
            )


def _units(pairing: Pairing) -> list[Unit]:
    """The modules that were paired by the order of their calls."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for p in pairing.pairs:
        if p.why.endswith(ORDER):
            found.setdefault((_module(p.torch), _module(p.flax)), []).append(p)
    return [Unit(*names, tuple(pairs)) for names, pairs in found.items()]


def _module(layer: Layer) -> str:
    return layer.owner if layer.leaf else layer.name


def _groups(twins: Iterable[tuple[Unit, Unit]]) -> list[list[Unit]]:
    """Units that are to be told apart, those together that hang together."""
    groups: list[dict[str, Unit]] = []
    for a, b in twins:
        joined = {a.torch: a, b.torch: b}
        for group in [group for group in groups if joined.keys() & group.keys()]:
            joined = group | joined
            groups.remove(group)
        groups.append(joined)
    return [list(group.values()) for group in groups]


def _decided(pairing: Pairing, group: list[Unit], trial: _Trial) -> Pairing:
    """The pairing with the units of a group in the one order that computing accepts."""
    if len(group) > MOST:
        for two in itertools.combinations(group, 2):
            pairing = _decided(pairing, list(two), trial)
        return pairing
    now = {u.torch: u for u in _units(pairing)}
    group = [now[u.torch] for u in group]
    ways = [_exchanged(pairing, group, order) for order in itertools.permutations(group)]
    sites = [trial.sites(way) for way in ways]
    moving = [site for site in sites[0] if len({one.get(site) for one in sites}) > 1]
    far = sorted((max((one.get(site, NOWHERE)[0] for site in moving), default=0.0), i) for i, one in enumerate(sites))
    if moving and far[0][0] * TOLD < far[1][0]:
        return ways[far[0][1]]
    # Behind a mistake every way is far off; the right one may still agree in a part, such as one direction of two.
    alike = sorted(
        ((sum(one.get(site, NOWHERE)[1] for site in moving), i) for i, one in enumerate(sites)), reverse=True
    )
    if alike[0][0] >= PART and alike[1][0] * TOLD < alike[0][0]:
        return ways[alike[0][1]]
    raise UserError(_undecided(group))


def _exchanged(pairing: Pairing, group: Iterable[Unit], order: Iterable[Unit]) -> Pairing:
    """The pairing with the Flax layers of some units in another order."""
    new = {}
    for mine, other in zip(group, order, strict=True):
        theirs = {p.torch.signature: p.flax for p in other.pairs}
        new |= {p.torch.name: replace(p, flax=theirs[p.torch.signature]) for p in mine.pairs}
    return replace(pairing, pairs=tuple(new.get(p.torch.name, p) for p in pairing.pairs))


class _Handing(Recorder):
    """Keeps what arrives at the layers and what they give, and hands on what PyTorch's layers gave."""

    def __init__(self, outputs: Tensors) -> None:
        super().__init__(inputs=True)
        self.expected = outputs

    def leave(self, name: str, y: Any) -> Any:
        super().leave(name, y)
        expected = self.expected.get(name)
        layout = None if expected is None else layout_of(np.asarray(y), expected)
        return y if expected is None or layout is None else jnp.asarray(to_flax(expected, layout), y.dtype)


class _Trial:
    """The models, run with the layers paired one way or another."""

    def __init__(self, build: Build, reference: torch.nn.Module, fed: Probe) -> None:
        self.build, self.fed, self.trials = build, fed, 0
        record = run_pytorch.Outputs(copies=True, inputs=True)
        copy = run_pytorch.promote(reference).eval()
        names = {name for name, _ in copy.named_modules() if name}
        with torch.no_grad(), run_pytorch.tapped(copy, record, names):
            values = run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))
        self.values = run_pytorch.outputs(values)
        self.given, self.handed = run_pytorch.numpy(record.inputs), run_pytorch.numpy(record.outputs)

    def _run(self, pairing: Pairing) -> tuple[_Handing, Tensors]:
        """The layers by PyTorch's names, and the outputs."""
        names = {
            _module(p.flax): _module(p.torch)
            for p in pairing.pairs
            if _module(p.flax) and _module(p.torch) and inventory.module_of(p.torch.name) == p.torch.name
        }
        net, tap = self.build(pairing, names), _Handing(self.handed)
        inputs, keywords = run_flax.inputs_of(self.fed)
        with inventory.raising():
            values, _ = net.forward(net.params, net.stats, inputs, keywords, False, tap)
        return tap, run_flax.outputs(values, self.values)

    def inputs(self, pairing: Pairing) -> Tensors:
        """Return what arrives at each layer of Flax's, by PyTorch's names."""
        tap, _ = self._run(pairing)
        return {name: np.asarray(x) for name, x in tap.inputs.items()}

    def sites(self, pairing: Pairing) -> dict[str, tuple[float, float]]:
        """Return how far each layer's input and output and each output of the model are off, and which part agrees.

        Raises:
            UserError: too many ways were tried.
        """
        self.trials += 1
        if self.trials > TRIALS:
            raise UserError(
                "too many layers are paired by the order of calls alone to try each way; say which is which with names="
            )
        tap, values = self._run(pairing)
        sides = (("into", tap.inputs, self.given), ("out of", tap.outputs, self.handed), ("", values, self.values))
        return {
            f"{side} {name}": (_far(np.asarray(got), expected[name]), _equal_part(np.asarray(got), expected[name]))
            for side, found, expected in sides
            for name, got in found.items()
            if name in expected
        }

    def alike(self, a: Unit, b: Unit) -> bool:
        """Return whether PyTorch gives two layers the same input, or it is not seen what it gives them."""
        mine, other = (inventory.module_of(u.torch) for u in (a, b))
        return np.array_equal(self.given.get(mine, np.nan), self.given.get(other, np.nan), equal_nan=True)

    def told(self, a: Unit, b: Unit, inputs: Tensors) -> bool:
        """Return whether the inputs of two layers say that each was paired with its own counterpart."""
        mine, other = (inventory.module_of(u.torch) for u in (a, b))
        if not all(name in side for name in (mine, other) for side in (inputs, self.given)):
            return False
        right = max(_far(inputs[mine], self.given[mine]), _far(inputs[other], self.given[other]))
        wrong = min(_far(inputs[other], self.given[mine]), _far(inputs[mine], self.given[other]))
        return right * TOLD < wrong


def _far(got: np.ndarray, expected: np.ndarray) -> float:
    """The distance of two arrays, relative to the second: of at most `SKETCH` of their numbers."""
    got = aligned(got, expected)
    if got.size != expected.size:
        return float("inf")
    step = max(1, expected.size // SKETCH)
    a, b = (array.reshape(-1)[::step].astype(np.float64) for array in (got, expected))
    far = float(np.linalg.norm(a - b)) / (float(np.linalg.norm(b)) or 1.0)
    return far if np.isfinite(far) else float("inf")


def _equal_part(got: np.ndarray, expected: np.ndarray) -> float:
    """The part of an array's numbers that are another's, but for rounding."""
    got = aligned(got, expected)
    if got.size != expected.size or not expected.size:
        return 0.0
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    near = np.abs(got.reshape(-1).astype(np.float64) - expected.reshape(-1)) < 1e-6 * size
    return float(np.mean(near))


def _undecided(group: list[Unit]) -> str:
    pairs = ", ".join(f"{u.torch!r}: {u.flax!r}" for u in group)
    mine, theirs = (", ".join(getattr(u, side) for u in group) for side in ("torch", "flax"))
    return (
        f"PyTorch's {mine} have the same shapes as Flax's {theirs}; only the order of calls says which is which, and "
        f"computing does not decide it. Say it with names={{{pairs}}}, or in another order; nothing was written"
    )
