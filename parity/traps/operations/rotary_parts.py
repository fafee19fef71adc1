"""Recognises a rotary embedding.

It looks at numbers: it compares the result of a call with the rotation of pairs of features, which are neighbours or
half of the features apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, made, name_of, read_once, same, through
from parity.traps.planting import Values


@dataclass(frozen=True)
class Rotation:
    """A rotation of pairs of features.

    Attributes:
        x: (..., depth), the features that are rotated.
        cos, sin: they broadcast to (..., depth / 2).
        halves: whether the features of a pair are half of the depth apart; otherwise they are neighbours.
        shape: the shape of the call's result.
        source: the tensor from which the code took the features; None if that is not known.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    halves: bool
    shape: torch.Size
    source: Any = None

    def value(self, halves: bool | None = None) -> Tensor:
        """The features before the rotation, in the layout of the call's result."""
        a, b = pairs(self.x, self.halves if halves is None else halves)
        y = a * self.cos - b * self.sin, a * self.sin + b * self.cos
        return joined(*y, self.halves if halves is None else halves).reshape(self.shape)

    @property
    def axis(self) -> int | None:
        """The axis of positions in `cos`: its last axis before the features along which values differ."""
        for i in reversed(range(self.cos.ndim - 1)):
            n = self.cos.shape[i]
            if n > 1 and not same(self.sin.narrow(i, 0, n - 1), self.sin.narrow(i, 1, n - 1)):
                return i
        return None

    def turned(self, change: Callable[[Angles], Angles | None]) -> Tensor | None:
        """The rotation by other angles."""
        angles = Angles.of(self)
        new = None if angles is None else change(angles)
        if angles is None or new is None:
            return None
        cos, sin = new.tables()
        return replace(self, cos=cos, sin=sin).value()


@dataclass(frozen=True)
class Angles:
    """Angles that grow by one frequency per position.

    Attributes:
        axis: of positions; `count` positions from `start`.
        frequencies: (..., depth / 2), with one position.
        size: the factor of cosines and sines.
    """

    axis: int
    positions: Tensor
    frequencies: Tensor
    size: Tensor

    @staticmethod
    def of(rotation: Rotation) -> Angles | None:
        """The angles of a rotation; None if they do not grow in this way."""
        if (axis := rotation.axis) is None:
            return None
        angle = torch.atan2(rotation.sin, rotation.cos)
        size = (rotation.sin.square() + rotation.cos.square()).sqrt()
        first, second = angle.narrow(axis, 0, 1), angle.narrow(axis, 1, 1)
        step = torch.remainder(second - first + math.pi, 2 * math.pi) - math.pi
        start = torch.round((first / step).nan_to_num().narrow(-1, -1, 1))
        n = rotation.cos.shape[axis]
        shape = [n if i == axis else 1 for i in range(angle.ndim)]
        found = Angles(axis, torch.arange(n).to(angle.dtype).reshape(shape) + start, step, size)
        return found if same(found.tables()[0], rotation.cos) and same(found.tables()[1], rotation.sin) else None

    def tables(self) -> tuple[Tensor, Tensor]:
        """The cosines and sines."""
        angle = self.positions * self.frequencies
        return angle.cos() * self.size, angle.sin() * self.size

    @property
    def exponents(self) -> Tensor:
        """0 to 1, without 1: of the frequencies."""
        d = self.frequencies.shape[-1]
        return torch.arange(d).to(self.frequencies.dtype) / d

    @property
    def logarithm(self) -> float:
        """Of the base, from the first two frequencies."""
        f = self.frequencies.abs().flatten()
        return float((f[0] / f[1]).log()) * self.frequencies.shape[-1]

    @property
    def last_logarithm(self) -> float:
        """Of the base, from the last two frequencies."""
        f = self.frequencies.abs().flatten()
        return float((f[-2] / f[-1]).log()) * self.frequencies.shape[-1]

    @property
    def geometric(self) -> bool:
        """Whether each frequency is the same fraction of the one before it."""
        plain = self.frequencies[..., :1] * (-self.exponents * self.logarithm).exp()
        return bool(torch.allclose(plain, self.frequencies, rtol=1e-6))


def pairs(x: Tensor, halves: bool) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])


def joined(a: Tensor, b: Tensor, halves: bool) -> Tensor:
    return torch.cat([a, b], -1) if halves else torch.stack([a, b], -1).flatten(-2)


def _circle(cos: Any, sin: Any) -> bool:
    """Whether the numbers are cosines and sines of the same angles, up to one factor."""
    if not isinstance(cos, Tensor) or not isinstance(sin, Tensor) or cos.shape != sin.shape or not cos.ndim:
        return False
    size = cos.square() + sin.square()
    return bool(torch.allclose(size, size.flatten()[0], rtol=1e-6)) and float(size.flatten()[0]) > 0


def _factors(x: Any) -> Iterator[tuple[Any, Any]]:
    call = made(x, "mul")
    if call is not None:
        a, b = call[0], call.argument(1, "other")
        yield through(a), through(b)
        yield through(b), through(a)


def _turned(call: Call) -> Iterator[Rotation]:
    """X · cos + R(x) · sin, where R exchanges the features of each pair."""
    for x, cos in _factors(call[0]):
        for other, sin in _factors(call.argument(1, "other")):
            if not _circle(cos, sin) or other.shape != x.shape or cos.shape[-1] != x.shape[-1]:
                continue
            for halves in (True, False):
                a, b = pairs(x, halves)
                for sign in (1.0, -1.0):
                    if same(other, joined(-sign * b, sign * a, halves)):
                        tables = [pairs(t, halves)[0] for t in (cos, sin * sign)]
                        yield Rotation(x, tables[0], tables[1], halves, x.shape, x)


def _terms(x: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The two products whose difference is `x`."""
    call = made(x, "sub")
    for a, cos in _factors(call[0]) if call else ():
        for b, sin in _factors(call.argument(1, "other")) if call else ():
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and _circle(cos, sin):
                yield a, b, cos, sin


def _split(call: Call) -> Iterator[Rotation]:
    """Each feature of a pair, computed separately: (a cos − b sin, a sin + b cos)."""
    parts, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    if len(parts) != 2 or dim not in (-1, parts[0].ndim - (call.name == "cat")):
        return
    for a, b, cos, sin in _terms(parts[0]):
        if not same(parts[1], (a * sin + b * cos).expand(parts[1].shape)):
            continue
        halves = call.name == "cat"
        shape = call.function(*call.args, **call.kw).shape
        parted = made(a, "chunk", "split", "getitem", "unbind")
        yield Rotation(joined(a, b, halves), cos, sin, halves, shape, parted[0] if parted else None)


def _complex(call: Call) -> Iterator[Rotation]:
    """The product of complex numbers."""
    for x, turn in _factors(call[0]):
        both = isinstance(x, Tensor) and isinstance(turn, Tensor) and x.is_complex() and turn.is_complex()
        if both and made(x, "view_as_complex") and _circle(turn.real, turn.imag):
            shape = torch.Size((*x.shape, 2))
            yield Rotation(torch.view_as_real(x).flatten(-2), turn.real, turn.imag, False, shape)


FORMS: dict[str, Callable[[Call], Iterator[Rotation]]] = {
    "add": _turned,
    "cat": _split,
    "stack": _split,
    "view_as_real": _complex,
}


@read_once
def rotation_of(function: Any, args: Values, kw: dict[str, Any]) -> Rotation | None:
    """Return the rotation that ends at this call; None if there is none."""
    call = Call(name_of(function), function, args, kw)
    with torch.no_grad():
        return next(FORMS[call.name](call), None)
