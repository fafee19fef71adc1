"""Distances between tensors, and the bounds to which they are compared.

The reference is run again with inputs, weights and outputs moved by one unit in the last place, with random signs, and
with images in memory as Flax keeps them, so that sums are taken in another order. The distance that a tensor moves is
its rounding response: the size of the differences that rounding alone can cause in it. A port passes if every tensor's
distance from the reference is at most `MULTIPLE` times the response. Otherwise the port is run in the same way, and
passes if the distance is at most `MULTIPLE` times the sum of both responses: either side may be that far from the exact
result.

The order of sums matters by itself: added one after the other, as XLA does, n numbers that cancel carry √n times the
rounding of their parts. Without the other order, one random network in forty was 47 responses away in the gradient of a
BatchNorm's weight, a sum over 2,184 numbers; with it, 2 responses. PyTorch never adds one after the other. So if many
numbers are equal (the gradient of a bias before a global mean: 2,268 numbers, five values), its response stays below
one unit in the last place, although such a sum rounds the same way each time: 38 units. A parameter's gradient that is
a sum of n numbers therefore has a response of √n units at least.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils._pytree import tree_map

from parity.numerics.layouts import Tensors, mapped, wide
from parity.numerics.quantities import Loss, Observation, Probe, parameter_of

# A right port is 0.5 to 12 responses away (`docs/decides.md` has the table); the smallest known mistake is 1e5
# responses away.
MULTIPLE = 32

# The rounding of PyTorch's types, read at import: while a model runs, the check changes what `torch.finfo` gives.
EPSILON = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}

# Between these limits a sum of squares is exact enough: no number that matters has become zero or infinite.
SQUARES = (1e-280, np.inf)

# The bits of a float64 number that hold its exponent.
EXPONENT = np.int64(0x7FF << 52)

# A bound above this fraction of a tensor's natural size decides nothing: the known mistakes are 6e-7 and larger.
DECIDES = 1e-7

# Rounding of the weights hides an update below this fraction of them: then its bound decides nothing.
SEEN = MULTIPLE * np.finfo(np.float64).eps / DECIDES

# An element of a gradient below this fraction of the others' size counts as zero in exact arithmetic. Rounding is
# near 1e-16 of their size.
UNSTEADY = 1e-11

# So does one below this fraction of the size that all gradients of the network have: a BatchNorm multiplies rounding by
# a hundred, and the gradient of a value's bias in an attention before it is zero beside a query's that is not.
NOTHING = 1e-13

GRADIENT = "gradient.parameter"

# One draw of signs may give a small response by chance, above all for a scalar, so the check takes the root mean square
# of several.
DRAWS = 5

# A table that float32 computed and rounded is off by so many units in the last place at most: a formula has a few
# operations. This is a limit, where a rounding response is a mean, so no multiple is needed.
TABLE_UNITS = 4


def floating(array: np.ndarray | np.floating) -> bool:
    """Whether the numbers are floating: numpy's own types, or bfloat16, whose kind numpy does not know."""
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def one_ulp(array: np.ndarray, rng: np.random.Generator, units: int = 1) -> np.ndarray:
    """Every number moved to one of its two neighbours in its own type; integers and zeros as they are.

    A zero carries no rounding: an exact zero (a zero-initialised BatchNorm) is zero in every right port. Moving it
    would also move all values at the kink of a later ReLU.

    Args:
        units: how many of its last places a number moves.
    """
    if array.dtype.kind == "c":
        parts = np.ascontiguousarray(array).reshape(-1).view(np.real(array).dtype)
        return one_ulp(parts, rng, units).view(array.dtype).reshape(array.shape)
    if not floating(array):
        return array
    towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    if units == 1:
        return np.where(array == 0, array, np.nextafter(array, towards))
    step = (units * np.spacing(np.abs(array))).astype(array.dtype)
    return np.where(array == 0, array, array + np.copysign(step, towards))


def perturbed(
    weights: Mapping[str, np.ndarray], probe: Probe, seed: int, units: int = 1
) -> tuple[dict[str, np.ndarray], Probe]:
    """Return weights, inputs and outputs moved by this many units in the last place, and images channels last.

    The outputs move on their way into the loss. Otherwise nothing would move the gradient of a last bias: it is a sum
    of the loss's own slopes, which rounds like every sum.
    """
    rng = np.random.default_rng([seed, 1])
    moved = {name: one_ulp(array, rng, units) for name, array in weights.items()}
    inputs = mapped(probe.inputs, lambda _, array: one_ulp(array, rng, units))
    loss = Loss(lambda values: probe.loss.torch(_moved_outputs(values, seed, units)), probe.loss.flax)
    return moved, replace(probe, inputs=inputs, loss=loss, channels_last=True)


def _moved_outputs(values: Any, seed: int, units: int) -> Any:
    """Return PyTorch's outputs moved by this many units, in the same way in every pass."""
    rng = np.random.default_rng([seed, 6])

    def moved(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return value
        signs = torch.as_tensor(rng.choice([-1.0, 1.0], tuple(value.shape))).to(value)
        return value * (1 + units * EPSILON[value.dtype] * signs)

    return tree_map(moved, values)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖₂; infinite if the shapes differ, or the places or signs of NaN and infinite numbers."""
    if a.shape != b.shape:
        return np.inf
    a, b = wide(a), wide(b)
    with np.errstate(all="ignore"):
        length = _length(a - b)
    if length is not None:
        return length
    finite = np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
            return np.inf
        a, b = a[finite], b[finite]
    if not np.isfinite(a).all():
        return np.inf
    with np.errstate(over="ignore"):
        difference = a - b
    return norm(difference) if np.isfinite(difference).all() else np.inf


def norm(array: np.ndarray | np.floating) -> float:
    """‖array‖₂ over what is finite in it, without overflow."""
    array = wide(array).ravel(order="K")
    if (length := _length(array)) is not None:
        return length
    array = array[np.isfinite(array)] if not np.isfinite(array).all() else array
    largest = float(np.abs(array).max(initial=0))
    return largest * float(np.linalg.norm(array / largest)) if largest > 0 else 0.0


def _length(array: np.ndarray | np.inexact) -> float | None:
    """Return ‖array‖₂ by one product; None if its square leaves the range of float64, or is NaN.

    The check measures billions of numbers, and most of its own time went into copies of them.
    """
    array = array.ravel(order="K")
    with np.errstate(all="ignore"):
        square = float(np.vdot(array, array).real)
    if SQUARES[0] < square < SQUARES[1]:
        return square**0.5
    return 0.0 if square == 0 and not array.any() else None


def _terms(name: str, parameter: np.ndarray, outputs: Tensors) -> int:
    """Return how many numbers the gradient of a parameter sums: examples and positions of its layer's output.

    If the layer is not in the record, assume a sum as long as the largest output allows.
    """
    layer = name.rpartition(".")[0]
    size = sum(y.size for call, y in outputs.items() if call.partition("#")[0] == layer)
    size = size or max((y.size for y in outputs.values()), default=0)
    return max(1, size // max(1, len(parameter) if parameter.ndim else 1))


def unsteady(reference: Observation) -> dict[str, np.ndarray]:
    """Return which elements of gradients are zero in exact arithmetic, by parameter.

    If a channel's ReLU is on for all examples, and a BatchNorm follows, the channel's bias has no effect, and its
    gradient is only rounding. An optimizer that divides by the gradient's size turns this into a step, which changes
    nothing.
    """
    found = {}
    gradients = reference.get("gradient.parameter", {})
    norms = {name: norm(gradient) for name, gradient in gradients.items()}
    count = sum(gradient.size for name, gradient in gradients.items() if norms[name])
    usual = math.hypot(*norms.values()) / max(count, 1) ** 0.5
    for name, gradient in gradients.items():
        size = np.abs(wide(gradient))
        least = max(UNSTEADY * norms[name] / max(gradient.size, 1) ** 0.5, NOTHING * usual)
        zero = (size > 0) & (size < least)
        if zero.any():
            found[name] = zero
    return found


class Responses:
    """The rounding responses of a reference, gathered from runs of its perturbed copies."""

    def __init__(
        self,
        reference: Observation,
        parameters: Mapping[str, np.ndarray],
        idle: Collection[str] = (),
        skipped: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Begin without a run.

        Args:
            skipped: by parameter the elements whose training is not compared (`unsteady`).
        """
        self.skipped = skipped or {}
        self.reference = {
            q: {n: self.compared(q, n, a) for n, a in tensors.items()} if self.skipped and _trains(q) else tensors
            for q, tensors in reference.items()
        }
        self.parameters = parameters
        self.idle = idle
        self.terms = {name: _terms(name, p, reference.get("layer.train", {})) for name, p in parameters.items()}
        self.distances: dict[str, dict[str, float]] = {q: dict.fromkeys(t, 0.0) for q, t in reference.items()}
        self.draws = 0
        self.port: Responses | None = None
        self.tables: Responses | None = None
        self.least_of: dict[tuple[str, str], float] = {}
        self.norm_of: dict[tuple[str, str], float] = {}

    def compared(self, quantity: str, name: str, tensor: np.ndarray) -> np.ndarray:
        """Return a tensor with zeros at the elements that are skipped."""
        zero = self.skipped.get(parameter_of(quantity, name)) if _trains(quantity) else None
        return tensor if zero is None or zero.shape != tensor.shape else np.where(zero, 0, tensor)

    def with_port(self, port: Responses) -> Responses:
        """Return the sum of both sides' responses: two right implementations differ by no more than a multiple of it.

        Args:
            port: of the port's own runs, around its own results.
        """
        both = copy.copy(self)
        both.port = port
        return both

    def with_tables(self, tables: Responses) -> Responses:
        """Return the responses with that to the tables that the reference holds in float32.

        Args:
            tables: of runs in which these tables alone were moved.
        """
        both = copy.copy(self)
        both.tables = tables
        return both

    def measured(self, quantity: str, name: str) -> float:
        """Return how far the perturbed runs moved a tensor (absolute): the root mean square; 0 if no run has it."""
        return self.distances.get(quantity, {}).get(name, 0.0) / max(self.draws, 1) ** 0.5

    def add(self, run: Iterable[tuple[str, Tensors]]) -> None:
        """One run of a perturbed copy."""
        self.draws += 1
        for quantity, tensors in run:
            for name, tensor in tensors.items():
                far = distance(self.compared(quantity, name, tensor), self.reference[quantity][name])
                self.distances[quantity][name] = math.hypot(self.distances[quantity][name], far)

    def response(self, quantity: str, name: str) -> float:
        """How far rounding moves this tensor (absolute), on the reference's side, or on both sides if both were run."""
        own = self.of_reference(quantity, name) + (self.port.measured(quantity, name) if self.port else 0.0)
        if quantity == "training.state":
            own = max(own, self._of_square(name))
        return own + (self.tables.measured(quantity, name) * TABLE_UNITS / MULTIPLE if self.tables else 0.0)

    def _of_square(self, name: str) -> float:
        """Return the response of an optimizer's tensor whose relative rounding is twice that of the gradient.

        That is a square of it. Few runs may hardly move the largest element, which makes up nearly all of a square.
        """
        parameter = parameter_of("training.state", name)
        if parameter not in self.reference.get(GRADIENT, {}) or not (size := self.norm(GRADIENT, parameter)):
            return 0.0
        return 2 * self.response(GRADIENT, parameter) / size * self.norm("training.state", name)

    def of_reference(self, quantity: str, name: str) -> float:
        """How far rounding moves this tensor (absolute), at least one unit in the last place of each number in it.

        The gradient of a parameter is a sum over positions and examples, so its response is at least √n units, for n
        terms; for its square, which an optimizer keeps, it is twice that. An update has the rounding of `_of_update`.
        """
        key = quantity, name
        if key not in self.least_of:
            self.least_of[key] = self._least(quantity, name)
        return max(self.measured(quantity, name), self.least_of[key])

    def norm(self, quantity: str, name: str) -> float:
        """Return the norm of a tensor of the reference."""
        key = quantity, name
        if key not in self.norm_of:
            self.norm_of[key] = norm(self.reference[quantity][name])
        return self.norm_of[key]

    def _least(self, quantity: str, name: str) -> float:
        """Return the least response, whatever the runs measured."""
        if quantity == "training.parameter":
            return self._of_update(name)
        base, units = self.reference[quantity][name], 1.0
        if quantity == "gradient.parameter":
            units = self.terms[name] ** 0.5
        elif quantity == "training.state":
            units = 2 * self.terms[parameter_of(quantity, name)] ** 0.5
        return units * ulps(base)

    def _of_update(self, name: str) -> float:
        """Return the least rounding of an update p_new − p_old.

        Adding it to p rounds to a unit in the last place of the larger of the two. The added number is made of
        gradients, which are sums of n terms, so it has a rounding of √n units. For a number that starts at zero only
        this second part counts: a unit of zero would be no bound at all.
        """
        parameter = parameter_of("training.parameter", name)
        update, p = self.reference["training.parameter"][name], self.parameters[parameter]
        if parameter in self.idle:  # nothing is added, so nothing is rounded
            return ulps(update)
        added = ulps(np.maximum(np.abs(p), np.abs(p + update)))
        return math.hypot(added, self.terms[parameter] ** 0.5 * ulps(update))

    def bound(self, quantity: str, name: str) -> float:
        """The largest distance (absolute) that a right port may have."""
        return MULTIPLE * self.response(quantity, name)

    def zero_in_exact_arithmetic(self, quantity: str, name: str) -> bool:
        """Whether the tensor has no right digit and holds only rounding (the gradient of a bias before BatchNorm)."""
        return self.response(quantity, name) > 1e-3 * self.norm(quantity, name)

    def sizes(self, quantity: str) -> dict[str, float]:
        """The natural size of every tensor of a quantity: its norm, or the norm expected of its number of elements.

        The norm of a gradient that is zero in exact arithmetic is only rounding; its natural size follows from the
        other gradients. A tensor of zeros (a frozen parameter's update) says nothing about the others' size.
        """
        tensors = self.reference[quantity]
        norms = {name: self.norm(quantity, name) for name in tensors}
        count = sum(t.size for name, t in tensors.items() if norms[name])
        rms = math.hypot(*norms.values()) / max(count, 1) ** 0.5
        return {name: max(norms[name], rms * tensors[name].size ** 0.5) for name in tensors}

    def undecided(self, quantity: str) -> list[str]:
        """The tensors whose bound is too wide to decide anything, and those without a finite number.

        This leaves out the training of a parameter whose gradient is zero in exact arithmetic: an optimizer that
        divides by the gradient's size turns its rounding into steps, which change nothing.
        """
        sizes = self.sizes(quantity)
        return [
            name
            for name, tensor in self.reference[quantity].items()
            if (self.bound(quantity, name) > DECIDES * sizes[name] > 0 and not self._noise(quantity, name))
            or (tensor.size and not np.isfinite(tensor.flat[0]) and not np.isfinite(tensor).any())
        ]

    @property
    def unmoved(self) -> bool:
        """Whether no output and no gradient depends on the weights, so that any port would agree."""
        gradients = self.reference["gradient.parameter"]
        if not gradients or any(gradient.any() for gradient in gradients.values()):
            return False
        outputs = ((q, n, a) for q in ("output.eval", "output.train") for n, a in self.reference[q].items())
        return not any(floating(array) and self.measured(quantity, name) for quantity, name, array in outputs)

    @property
    def without_effect(self) -> list[str]:
        """The layers whose parameters get gradients that are all exactly zero."""
        found: dict[str, bool] = {}
        for name, gradient in self.reference["gradient.parameter"].items():
            if name not in self.idle:
                layer = name.rpartition(".")[0] or name
                found[layer] = found.get(layer, False) or bool(gradient.any())
        return [layer for layer, moves in found.items() if not moves]

    def _noise(self, quantity: str, name: str) -> bool:
        if not _trains(quantity) or (name := parameter_of(quantity, name)) not in self.reference["gradient.parameter"]:
            return False
        return self.zero_in_exact_arithmetic("gradient.parameter", name)


def _trains(quantity: str) -> bool:
    return quantity.startswith("training.")


def ulps(array: np.ndarray | np.floating) -> float:
    """‖ulp(array)‖₂. The unit of a number of float64 is the power of two in its bits, 52 places lower."""
    if array.dtype == np.float64 and array.ndim:
        with np.errstate(all="ignore"):
            powers = (np.ascontiguousarray(array).view(np.int64) & EXPONENT).view(np.float64)
            if length := _length(powers):
                return length * EPSILON[torch.float64]
    return norm(ulp(array))


def ulp(array: np.ndarray | np.floating) -> np.ndarray | np.float64:
    """One unit in the last place of every number (0 for integers), as float64."""
    if array.dtype.kind == "c":
        return np.hypot(ulp(np.real(array)), ulp(np.imag(array)))
    if not floating(array):
        return np.zeros(array.shape)
    return np.spacing(np.abs(np.where(np.isfinite(array), array, 0))).astype(np.float64)
