"""Where a side rounds: every layer by itself, and what is computed between two layers, in a working precision.

A softmax counts as a layer, wherever it is called: its scores are forced, and its output is compared after it is
  rounded to the type, which either side may do a line later.

In a forced run every layer gets the same input on each side, rounded to the type, and hands on the same output. What a
layer gives is then off by its own rounding alone, and what arrives at the next layer by the rounding between the two.
The exact values are those of the reference in float64 on the same rounded inputs and weights, so that an error is what
the code rounds and nothing else.

Each operation rounds its result as the code says. PyTorch computes so by itself. JAX's compiler computes chains of
operations in float32 where that is faster, one way on each device; therefore the port runs without it, one operation
after the other. PyTorch's fused functions run in both of their forms (`running.written_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import ml_dtypes
import numpy as np
from torch import nn

from parity.numerics import bounds
from parity.numerics.pins import Pins
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.flax import Functional
from parity.running.forced_values import Key, Values, is_softmax, keys_of, of_flax, of_torch
from parity.running.subject import Subject
from parity.running.taps import layer_of
from parity.running.written_out import written_out
from parity.verdict import precision
from ports import weights

# The number of runs whose layer inputs move by one unit in the last place, so that each run has new roundings.
DRAWS = 6

# A score larger than this in absolute value is a mask; each side uses its own number for it.
MASKED = 1e4

# The root mean square of a rounding, as a fraction of one unit in the last place.
ROUNDING = 12**-0.5


@dataclass
class Errors:
    """Squares of distances from the exact values at one place, summed over draws.

    Attributes:
        within: the module whose code computes what is seen there.
        port: of the port.
        forms: of the reference, as it is and with its fused functions written out.
        unit: that one rounding of every number makes, in the type in which the reference has them.
        fourth: the sum of the fourth powers of these roundings.
        size: of the exact values.
        held: the type in which the reference has them.
        slices: the port's squares and those of each form, by axis and index: a rounding of one channel, or of one row,
            is in all numbers of its slice.
    """

    within: str
    port: float = 0.0
    forms: tuple[float, ...] = ()
    unit: float = 0.0
    fourth: float = 0.0
    size: float = 0.0
    held: str = "float64"
    slices: list[np.ndarray] = field(default_factory=list)

    def _add_slices(self, squares: Sequence[np.ndarray]) -> None:
        """Add squares of the port and of each form."""
        axes = range(squares[0].ndim)
        sums = [np.array([s.sum(tuple(a for a in axes if a != axis)) for s in squares]) for axis in axes]
        self.slices = [a + b for a, b in zip(self.slices, sums, strict=True)] if self.slices else sums

    def scatter(self, form: int) -> float:
        """Return the standard deviation of the logarithm of the port's error over a form's, from slice to slice.

        Of a port that rounds as this form does, in other places, few slices may be farther off by chance.
        """
        found = 0.0
        for sums in self.slices:
            port, other = sums[0], sums[1 + form]
            if port.sum() > 0 and other.sum() > 0:
                found = max(found, bounds.norm(port / port.sum() - other / other.sum()) / 2)
        return found

    @property
    def count(self) -> float:
        """The equivalent count of equally large numbers: a few large ones hide the rest."""
        return max(self.unit**2 / self.fourth, 1.0) if self.fourth else 1.0

    def add(self, arrays: Sequence[np.ndarray], held: np.dtype) -> None:
        """Add one draw: the exact values, the port's, and those of the reference's forms, held in a type."""
        exact, self.held = arrays[0], held.name
        port, *forms = (bounds.distance(array, exact) ** 2 for array in arrays[1:])
        if np.isfinite([port, *forms]).all():
            self._add_slices([(np.asarray(array, np.float64) - exact) ** 2 for array in arrays[1:]])
        self.port += port
        self.forms = tuple(a + b for a, b in zip(self.forms or [0.0] * len(forms), forms, strict=True))
        unit = (ROUNDING * np.asarray(bounds.ulp(exact.astype(held)))) ** 2
        self.unit += float(unit.sum())
        self.fourth += float((unit**2).sum())
        self.size += bounds.norm(exact) ** 2


def measure(
    subject: Subject,
    port: str,
    dtype: str,
    products: Callable[[], Any] = nullcontext,
    draws: int = DRAWS,
) -> dict[Key, Errors]:
    """Return the errors of a port and of the reference in a type at every place that both have, in execution order."""
    low = precision.cast(subject.reference, dtype, subject.types)
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in low.modules())
    state, fed = weights.read(low), precision.fed_in(subject.probe, dtype)
    exact = run_pytorch.promote(subject.reference)
    weights.write(exact, {n: a.astype(np.float64) if bounds.floating(a) else a for n, a in state.items()})
    with jax.enable_x64(False):
        net = subject.candidates[port].in_type(dtype, state)
    wide = replace(precision.widened(fed), pins=Pins("pytorch"))
    recorded = subject.names
    sides = Sides(
        exact, low, net, fed, wide, dtype, run_pytorch.with_parameters(exact) if recorded is None else recorded
    )
    found: dict[Key, Errors] = {}
    for train in (False, True) if norms else (False,):
        with products():
            common = sides.common(train)
            for draw in range(draws):
                sides.add(found, _moved(common, dtype, [subject.seed, draw, 12]), train)
    return found


def _moved(values: Values, dtype: str, seed: Sequence[int]) -> Values:
    """Return values in a type moved by one unit in its last place: this gives new roundings."""
    rng = np.random.default_rng(seed)
    narrow = {key: array.astype(precision.DTYPES[dtype]) for key, array in values.items()}
    return {key: bounds.one_ulp(array, rng).astype(values[key].dtype) for key, array in narrow.items()}


@dataclass(frozen=True)
class Sides:
    """All that runs: the reference in float64 and in a type, a port in it, on the same weights, and what they are fed.

    Attributes:
        wide: what the reference in float64 is fed: the same numbers.
        names: the layers that are recorded on both sides.
    """

    exact: nn.Module
    low: nn.Module
    net: Functional
    fed: Probe
    wide: Probe
    dtype: str
    names: Collection[str]

    def add(self, found: dict[Key, Errors], values: Values, train: bool) -> None:
        """Add the errors of one draw, in which every layer gets its value."""
        forced = {key: array for key, array in values.items() if key[0] != "end"}
        with written_out():
            expected, within = of_torch(self.exact, self.wide, forced, train)
            written, _ = of_torch(self.low, self.fed, forced, train)
        fused, _ = of_torch(self.low, self.fed, forced, train)
        port = of_flax(self.net, self.fed, values, train)
        for key in [key for key in expected if key in port and key in written]:
            arrays = [of[key] for of in (expected, port, fused, written) if key in of]
            held = written[key].dtype
            if is_softmax(key):
                held = np.dtype(precision.DTYPES[self.dtype])
                counts = np.abs(arrays[0]) < MASKED
                arrays = [np.where(counts, array, 0) for array in arrays]
                arrays[1:] = [_rounded(array, self.dtype) for array in arrays[1:]]
            name = (key[0], f"{key[1]} (train)") if train else key
            found.setdefault(name, Errors(within.get(key, ""))).add(arrays, held)

    def common(self, train: bool) -> Values:
        """Return the reference's values, rounded to the type, at the places that both sides have, and at the end.

        Each is of the type in which the reference holds it.
        Softmaxes are counted: where a side calls more of them than the other, they are not compared.
        """
        with written_out():
            free, _ = of_torch(self.exact, self.wide, {}, train)
            held, _ = of_torch(self.low, self.fed, {}, train)
        values = {key: _rounded(array, self.dtype) for key, array in free.items() if key in held}
        values = {key: a.astype(held[key].dtype) for key, a in values.items() if np.isfinite(a).all()}
        seen = keys_of(self.net, self.fed, train)
        theirs, ours = ({key for key in keys if is_softmax(key)} for keys in (seen, values))

        def is_common(key: Key) -> bool:
            if is_softmax(key):
                return theirs == ours
            return key[0] == "end" or (layer_of(key[1]) in self.names and key in seen)

        return {key: array for key, array in values.items() if is_common(key)}


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array rounded to a type, as float64; what is too large for it as a number near its largest."""
    largest = float(ml_dtypes.finfo(precision.DTYPES[dtype]).max) / 2
    return np.clip(array.astype(np.float64), -largest, largest).astype(precision.DTYPES[dtype]).astype(np.float64)


def places(found: Mapping[Key, Errors]) -> Iterator[tuple[Key, Errors]]:
    """Return the places where a rounding can be seen: the numbers are finite, and a side is not exact."""
    for key, errors in found.items():
        if errors.unit > 0 and (errors.port or any(errors.forms)) and all(map(np.isfinite, errors.forms)):
            yield key, errors
