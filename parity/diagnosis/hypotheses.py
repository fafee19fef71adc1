"""Say what a port computes where no known mistake explains it: what PyTorch computes, with one simple change.

The changes are rows: a constant factor, an axis in another order, an operation left out or added, another constant, a
value from elsewhere. A change is reported only if it gives all of the port's numbers, up to rounding, so it is not a
guess. One unknown number is fitted by Gauss and Newton's method, if there are enough numbers to confirm it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parity.diagnosis import rewired
from parity.diagnosis.localise import FORWARD
from parity.diagnosis.operations import DifferingPlace, ReferenceNetwork, WayTo
from parity.numerics import bounds
from parity.numerics.layouts import wide
from parity.traps.operations.parts import RANDOM, TRANSPARENT, Call, call_of, number, replayed

Array = np.ndarray

# Limits of recomputing for one place: how often, and how many numbers in total.
TIMES, NUMBERS = 3000, 3e9
# The fit ends if a step does not reduce the distance to this fraction, or after this many steps.
CLOSER, STEPS = 0.9, 12
# With fewer numbers than this, one unknown number could explain too much.
ENOUGH = 8
DIGITS = 6  # of a number in a message
# Where the search for a factor starts: some code multiplies positions by π, other code does not.
FACTORS = (1.0, 0.5, 2.0, -1.0, math.pi, 1 / math.pi, 2 * math.pi)
# An order of more than this many entries is not written out.
LISTED = 12

# Functions of one tensor that people easily confuse, forget or add.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu, tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "x * sigmoid(1.702 * x)": lambda x: x * torch.sigmoid(1.702 * x),
    "softmax": partial(torch.softmax, dim=-1),
    "log_softmax": partial(torch.log_softmax, dim=-1),
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "relu, squared": lambda x: F.relu(x).square(),
    "rsqrt": torch.rsqrt,
    "normalize": partial(F.normalize, dim=-1),
    "sin": torch.sin,
    "cos": torch.cos,
}
# Functions of two tensors that people confuse when they lose a sign.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
# Operations whose two operands cannot be exchanged.
ORDERED = frozenset(("sub", "div", "matmul", "pow", "rdiv", "rsub"))
# Products of matrices, in which a square one may stand transposed.
PRODUCTS = frozenset(("matmul", "mm", "bmm", "linear", "einsum", "addmm", "baddbmm"))


@dataclass(frozen=True)
class Change:
    """One change of a call's result.

    Attributes:
        text: its description, with `{}` for the number.
        value: the call's new value, from its arguments and the number.
        starts: the numbers from which the search begins, first the one that changes nothing; empty if no number is
            unknown.
    """

    text: str
    value: Callable[[Any, Any, Any, float], Any]
    starts: tuple[float, ...] = ()


def _on_result(text: str, change: Callable[[Any, float], Any], starts: tuple[float, ...] = ()) -> Change:
    """Return a change of a call's result; if the result is several tensors, of the first one."""

    def changed(f: Any, args: Any, kw: Any, n: float) -> Any:
        value = f(*args, **kw)
        return (change(value[0], n), *value[1:]) if isinstance(value, tuple | list) else change(value, n)

    return Change(text, changed, starts)


def _left_out(call: Call, result: Tensor) -> Iterator[Change]:
    if call.name in TRANSPARENT:
        return
    alone = sum(isinstance(given, Tensor) for given in call.args) == 1
    for i, given in enumerate(call.args):
        if isinstance(given, Tensor) and given.shape == result.shape and given.dtype == result.dtype:
            text = "without {op}" if alone else f"with argument {i + 1} of {{op}} instead of its result"
            yield Change(text, lambda f, args, kw, n, i=i: args[i])


def _exchanged(call: Call, result: Tensor) -> Iterator[Change]:
    if call.name in ORDERED and len(call.args) > 1:
        yield Change(
            "with the two arguments of {op} exchanged", lambda f, args, kw, n: f(args[1], args[0], *args[2:], **kw)
        )


def _transposed(call: Call, result: Tensor) -> Iterator[Change]:
    for i, given in enumerate(call.args if call.name in PRODUCTS else ()):
        if isinstance(given, Tensor) and given.ndim > 1 and given.shape[-1] == given.shape[-2]:
            text = f"with argument {i + 1} of {{op}} transposed"
            yield Change(text, partial(_with_transposed, i))


def _with_transposed(i: int, f: Any, args: Any, kw: Any, n: float) -> Any:
    return f(*(a.transpose(-1, -2) if k == i else a for k, a in enumerate(args)), **kw)


def _other_parts(call: Call, result: Tensor) -> Iterator[Change]:
    parts = _given(call)
    if not isinstance(parts, tuple | list):
        return
    for i, j in combinations(range(len(parts)), 2):
        if all(isinstance(parts[k], Tensor) for k in (i, j)) and parts[i].shape == parts[j].shape:
            yield Change(f"with the parts {i} and {j} of {{op}} exchanged", partial(_with_parts_exchanged, i, j))


def _with_parts_exchanged(i: int, j: int, f: Any, args: Any, kw: Any, n: float) -> tuple[Any, ...]:
    parts = [*f(*args, **kw)]
    parts[i], parts[j] = parts[j], parts[i]
    return tuple(parts)


def _in_another_order(call: Call, result: Tensor) -> Iterator[Change]:
    for i, given in enumerate(call.args):
        between, inner = _axes_between(given)
        if inner is None:
            continue
        for j, below in enumerate(inner.args):
            if isinstance(below, Tensor) and below.shape == (between[-1][0] if between else given).shape:
                yield Change(f"with {{op}} before `{inner.name}`", partial(_first_outer, i, between, inner, j))


def _axes_between(x: Any) -> tuple[list[Call], Call | None]:
    """Return the calls that only move axes, from `x` backward, and the call whose result they move."""
    between, call = list[Call](), call_of(x)
    while call is not None and call.args and call.name in (*TRANSPARENT, "permute", "transpose"):
        between.append(call)
        call = call_of(call[0])
    return between, call


def _first_outer(i: int, between: list[Call], inner: Call, j: int, f: Any, args: Any, kw: Any, n: float) -> Tensor:
    """Exchange two calls: compute a call on the input of the call before it, and that call on the result."""

    def moved(x: Tensor) -> Tensor:
        for call in reversed(between):
            x = call.function(x, *call.args[1:], **call.kw)
        return x

    below = moved(inner[j])
    value = f(*(below if k == i else a for k, a in enumerate(args)), **kw)
    # An array whose axes all have different lengths shows where the axes of the result come from.
    order = [int(k) for k in moved(torch.zeros([k + 2 for k in range(value.ndim)])).shape]
    value = value.permute([order.index(k + 2) for k in range(value.ndim)])
    return moved(inner.function(*(value if k == j else a for k, a in enumerate(inner.args)), **inner.kw))


def _another_function(call: Call, result: Tensor) -> Iterator[Change]:
    if call.name in UNARY and isinstance(call[0], Tensor):
        for name, function in UNARY.items():
            yield Change(f"with `{name}` instead of {{op}}", lambda f, args, kw, n, g=function: g(args[0]))


def _another_operator(call: Call, result: Tensor) -> Iterator[Change]:
    if call.name in BINARY and len(call.args) == 2 and all(isinstance(given, Tensor) for given in call.args):
        for name, function in BINARY.items():
            if name != call.name:
                text = f"with `{name}` instead of {{op}}"
                yield Change(text, lambda f, args, kw, n, g=function: g(args[0], args[1]))


def _one_more(call: Call, result: Tensor) -> Iterator[Change]:
    for name, function in UNARY.items():
        yield _on_result(f"with `{name}` after {{op}}", lambda value, n, g=function: g(value))
    if sum(isinstance(a, Tensor) for a in call.args) == 1 and call.name not in TRANSPARENT:
        yield Change("with {op} applied twice", lambda f, args, kw, n: f(f(*args, **kw), *args[1:], **kw))


def _other_axes(call: Call, result: Tensor) -> Iterator[Change]:
    for a, b in combinations(range(result.ndim), 2):
        text = f"with the axes {a} and {b} of what {{op}} gives exchanged"
        yield _on_result(text, lambda value, n, a=a, b=b: value.transpose(a, b))
        if result.shape[a] != result.shape[b]:
            text = f"with what {{op}} gives transposed in its axes {a} and {b} and reshaped back"
            yield _on_result(text, lambda value, n, a=a, b=b: value.transpose(a, b).reshape(value.shape))
    for axis in range(result.ndim):
        if result.shape[axis] > 1:
            yield _on_result(
                f"with what {{op}} gives reversed along axis {axis}", lambda value, n, a=axis: value.flip(a)
            )
            for by in (1, -1):
                text = f"with what {{op}} gives rolled by {by} along axis {axis}"
                yield _on_result(text, lambda value, n, a=axis, by=by: value.roll(by, a))


def _another_constant(call: Call, result: Tensor) -> Iterator[Change]:
    for key, given in (*enumerate(call.args), *call.kw.items()):
        c = number(given)
        if c is None or not np.isfinite(c) or (isinstance(given, int) and call.name not in _WITH_NUMBERS):
            continue
        yield Change(
            f"with {{}} instead of {shown(c)} in {{op}}",
            lambda f, args, kw, n, key=key: f(
                *(n if key == i else a for i, a in enumerate(args)),
                **{name: n if key == name else value for name, value in kw.items()},
            ),
            (c, c + 1, c - 1, 2 * c, c / 2, -c, 1 / c if c else 1.0, 1.0, 0.0, *_FILLED.get(call.name, ())),
        )


# Numbers that a function may fill in: values that no maximum picks and no softmax counts.
_FILLED: dict[str, tuple[float, ...]] = dict.fromkeys(("pad", "masked_fill", "where", "full"), (-math.inf,))
_WITH_NUMBERS = frozenset(("mul", "div", "rdiv", "add", "sub", "rsub", "pow", "clamp", "clip"))


def _scaled(call: Call, result: Tensor) -> Iterator[Change]:
    yield _on_result("with what {op} gives multiplied by {}", lambda value, n: value * n, FACTORS)
    yield _on_result("with {} added to what {op} gives", lambda value, n: value + n, (0.0,))


# The rows: each yields the changes that are possible for a call. Changes without an unknown number come first.
CHANGES: tuple[Callable[[Call, Tensor], Iterator[Change]], ...] = (
    _left_out,
    _exchanged,
    _transposed,
    _other_parts,
    _in_another_order,
    _another_operator,
    _another_function,
    _other_axes,
    _one_more,
    _another_constant,
    _scaled,
)


def shown(value: float) -> str:
    """Return a number in a form that a reader recognises: `3`, `1/8`, `√32`, `1/√32`, `1e-05`, or its first digits."""
    if not math.isfinite(value):
        return str(value)
    if 0 < abs(value) <= 0.01 and float(f"{value:.2g}") == value:  # an epsilon
        return f"{value:.2g}"
    for text, exact in (("{}", value), ("1/{}", 1 / value if value else 0.5)):
        if abs(exact - round(exact)) < 1e-8 * abs(exact) and abs(exact) < 1e5:
            return text.format(round(exact))
    for text, exact in (("{}π", value / math.pi), ("{}/π", value * math.pi)):
        if abs(exact - round(exact)) < 1e-8 * abs(exact) and 0 < exact < 1e3:
            return text.format("" if text == "{}π" and round(exact) == 1 else round(exact))
    for text, exact in (("√{}", value**2), ("1/√{}", value**-2 if value else 0.5)):
        if value > 0 and abs(exact - round(exact)) < 1e-8 * exact and exact < 1e5:
            return text.format(round(exact))
    return f"{value:.6g}"


@dataclass
class _Trial:
    """A place: the port's value there, and how often it was recomputed."""

    way: WayTo
    got: Array
    times: int = 0
    cost: float = field(init=False)

    def __post_init__(self) -> None:
        elements = sum(t.numel() for call in self.way.calls for t in call.tensors)
        self.cost = max(1.0, float(elements))

    @property
    def spent(self) -> bool:
        return self.times >= TIMES or self.times * self.cost >= NUMBERS

    def error(self, value: Array) -> Array | None:
        """Return the distance of a value from the port's; None if it has another shape, or NaN."""
        value = self.way.counted(value)
        if value.shape != self.got.shape:
            return None
        difference = value - self.got
        return difference if np.isfinite(difference).all() else None

    def is_right(self, error: Array | None) -> bool:
        return error is not None and float(np.linalg.norm(error)) <= FORWARD * (bounds.norm(self.got) or 1.0)

    def with_change(self, change: Change, call: Call, n: float) -> Array | None:
        """Return the distance of the port from PyTorch with a change; None if that cannot be computed."""
        self.times += 1
        try:
            with torch.no_grad():
                plant = partial(_valued, change, n)
                value = replayed(self.way.value, self.way.calls, plant, [call.number])
                return self.error(value.detach().numpy())
        except rewired.ERRORS:
            return None

    def holds(self, change: Change, call: Call) -> float | None:
        """Return the number with which a change explains the port, 0 if it needs no number; otherwise None."""
        if not change.starts:
            return 0.0 if self.is_right(self.with_change(change, call, 0.0)) else None
        if self.got.size < ENOUGH:
            return None
        errors = {n: self.with_change(change, call, n) for n in dict.fromkeys(change.starts)}
        for n, error in errors.items():
            if self.is_right(error):
                return n
        sizes = {n: float(np.linalg.norm(e)) for n, e in errors.items() if e is not None}
        for n in dict.fromkeys((change.starts[0], min(sizes, key=lambda n: sizes[n], default=change.starts[0]))):
            if n in sizes and (found := self.fitted(change, call, n)) is not None:
                return self.shortest(change, call, found)
        return None

    def shortest(self, change: Change, call: Call, n: float) -> float:
        """Round `n` to the fewest digits with which a change still explains the port."""
        rounded = (float(f"{n:.{digits}g}") for digits in range(1, DIGITS))
        return next((m for m in rounded if self.is_right(self.with_change(change, call, m))), n)

    def fitted(self, change: Change, call: Call, n: float) -> float | None:
        """Return the number with which a change explains the port's value; the search starts at `n`."""
        before = np.inf
        for _ in range(STEPS):
            h = 1e-6 * max(abs(n), 1e-3)
            error, beside = self.with_change(change, call, n), self.with_change(change, call, n + h)
            if self.is_right(error):
                return n
            if error is None or beside is None or (size := float(np.linalg.norm(error))) > CLOSER * before:
                return None
            slope = (beside - error) / h
            steepness = float(np.vdot(slope, slope))
            if steepness == 0:
                return None
            n, before = n - float(np.vdot(slope, error)) / steepness, size
        return None


def _valued(change: Change, n: float, function: Any, args: Any, kw: Any) -> Any:
    return change.value(function, args, kw, n)


def explain(network: ReferenceNetwork, place: DifferingPlace) -> str:
    """Return the port's value at a place in terms of PyTorch's, as the end of a sentence; otherwise an empty text.

    Random values and values that are not finite get no text.
    """
    if place.side == "gradient":
        return ""
    run = network.runs[place.train]
    expected = run.seen_at(place.side).get(place.call)
    if expected is None or place.got.dtype.kind not in "fiu" or not np.isfinite(place.got).all():
        return ""
    got = wide(place.got)
    if expected.shape != got.shape:
        return of_shape(expected, got) or rewired.explain(network, place, got)
    return of_value(wide(expected), got) or rewired.explain(network, place, got) or of_operation(network, place)


def of_shape(expected: Array, got: Array) -> str:
    """Return how a value with another shape follows from PyTorch's."""
    if expected.size == got.size and expected.ndim == got.ndim and expected.ndim > 1:
        for a, b in combinations(range(expected.ndim), 2):
            if _equal(np.swapaxes(expected, a, b), got):
                return f"PyTorch's value with the axes {a} and {b} exchanged"
    return ""


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(bounds.distance(a, b) <= FORWARD * (bounds.norm(b) or 1.0))


def of_value(expected: Array, got: Array) -> str:
    """Return how a value follows from PyTorch's, however it was computed: by a factor, a sum, or another order."""
    size = float(np.vdot(expected, expected))
    if not bounds.norm(got):
        return "zero everywhere" if size else ""
    if got.size < ENOUGH:
        return ""
    if size and _equal(expected * (factor := float(np.vdot(expected, got)) / size), got):
        return (
            f"PyTorch's value divided by {shown(1 / factor)}"
            if abs(factor) < 1
            else f"PyTorch's value times {shown(factor)}"
        )
    if _equal(expected + (term := float(np.mean(got - expected))), got):
        return f"PyTorch's value plus {shown(term)}"
    if hidden := _hidden(expected, got):
        return hidden
    for axis in range(expected.ndim):
        if order := _order(expected, got, axis):
            listed = f" ({', '.join(map(str, order))})" if len(order) <= LISTED else ""
            return f"PyTorch's value with the entries of axis {axis} in another order{listed}"
    return ""


def _hidden(expected: Array, got: Array) -> str:
    """Return whether the port's value is zero at more positions, or at fewer, with all their features."""
    if expected.ndim < 2:
        return ""
    other = np.abs(got - expected) > FORWARD * max(float(np.abs(expected).max()), float(np.abs(got).max()))
    positions = other.any(-1)
    if not positions.any() or positions.all():
        return ""
    first = tuple(int(i) for i in np.argwhere(positions)[0])
    if not got[positions].any():
        return f"PyTorch's value with zeros at more positions, the first {first}, as where a mask hides more of them"
    if not expected[positions].any():
        return f"PyTorch's value without the zeros at some positions, the first {first}, as where a mask hides fewer"
    return ""


def _order(expected: Array, got: Array, axis: int) -> list[int]:
    """Return the entries of PyTorch's axis in the port's order; empty if the port has other entries."""
    ours, theirs = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (expected, got))
    if len(ours) < 2 or ours.shape[1] < 2:
        return []
    # A sum with random weights identifies a row, so that it is not necessary to compare every row with every other.
    weights = np.random.default_rng(0).standard_normal(ours.shape[1])
    sums, wanted = ours @ weights, theirs @ weights
    sorted_sums = np.argsort(sums)
    at = np.clip(np.searchsorted(sums[sorted_sums], wanted), 0, len(sums) - 1)
    beside = np.clip(at - 1, 0, None)
    nearer = np.abs(sums[sorted_sums[at]] - wanted) <= np.abs(sums[sorted_sums[beside]] - wanted)
    order = sorted_sums[np.where(nearer, at, beside)]
    return [int(i) for i in order] if _equal(ours[order], theirs) else []


def of_operation(network: ReferenceNetwork, place: DifferingPlace) -> str:
    """Return the change of one operation with which the reference computes the port's value at a place."""
    way = network.on_the_way_to(place)
    if way.value is None or any(word in call.name for call in way.calls for word in RANDOM):
        return ""
    trial = _Trial(way, way.counted(place.got))
    results = [(call, result) for call in reversed(way.calls) if (result := _result(call)) is not None]
    for row in CHANGES:
        for call, result in results:
            for change in row(call, result):
                if trial.spent:
                    return ""
                if (n := trial.holds(change, call)) is not None:
                    at = f"`{call.name}` ({call.place})" if call.place else f"`{call.name}`"
                    return f"PyTorch's value computed {change.text.replace('{op}', at).replace('{}', shown(n))}"
    return ""


def _result(call: Call) -> Tensor | None:
    """Return a call's result, or the first of several tensors; None if that is not a tensor of real numbers."""
    result = _given(call)
    result = result[0] if isinstance(result, tuple | list) and len(result) else result
    return result if isinstance(result, Tensor) and result.dtype != torch.bool and not result.is_complex() else None


def _given(call: Call) -> Any:
    """Return the recomputed result of a call; None if it raises."""
    try:
        with torch.no_grad():
            return call.function(*call.given(), **call.kw)
    except rewired.ERRORS:
        return None
