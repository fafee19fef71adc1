"""Known mistakes in rotary embeddings. A new mistake is a new row.

A rotary embedding is recognised by its numbers: what a call gives is compared with the rotation of pairs of features,
whether the pairs are neighbours or stand half of the features apart.
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
from parity.traps.trap import Trap

HEADS = ("add", "cat", "stack", "view_as_real")
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Rotation:
    """A rotation of pairs of features.

    Attributes:
        x: (..., depth), what is rotated.
        cos, sin: they broadcast to (..., depth / 2).
        halves: whether the pairs stand half of the features apart; else they are neighbours.
        shape: of what the call gives.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    halves: bool
    shape: torch.Size

    def value(self, halves: bool | None = None) -> Tensor:
        """What is rotated, as the call gives it."""
        a, b = _pairs(self.x, self.halves if halves is None else halves)
        y = a * self.cos - b * self.sin, a * self.sin + b * self.cos
        return _joined(*y, self.halves if halves is None else halves).reshape(self.shape)

    @property
    def axis(self) -> int | None:
        """The axis of positions, of `cos`: its last axis but the features that is longer than one, and differs."""
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
    """Angles that grow by one frequency a position.

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
        """The angles of a rotation; None where they do not grow so."""
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
    def geometric(self) -> bool:
        """Whether each frequency is the same part of the one before it."""
        plain = self.frequencies[..., :1] * (-self.exponents * self.logarithm).exp()
        return bool(torch.allclose(plain, self.frequencies, rtol=1e-6))


def _pairs(x: Tensor, halves: bool) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])


def _joined(a: Tensor, b: Tensor, halves: bool) -> Tensor:
    return torch.cat([a, b], -1) if halves else torch.stack([a, b], -1).flatten(-2)


def _circle(cos: Any, sin: Any) -> bool:
    """Whether the numbers are cosines and sines of something, but for one factor."""
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
                a, b = _pairs(x, halves)
                for sign in (1.0, -1.0):
                    if same(other, _joined(-sign * b, sign * a, halves)):
                        tables = [_pairs(t, halves)[0] for t in (cos, sin * sign)]
                        yield Rotation(x, tables[0], tables[1], halves, x.shape)


def _terms(x: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The two products whose difference is `x`."""
    call = made(x, "sub")
    for a, cos in _factors(call[0]) if call else ():
        for b, sin in _factors(call.argument(1, "other")) if call else ():
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and _circle(cos, sin):
                yield a, b, cos, sin


def _split(call: Call) -> Iterator[Rotation]:
    """Both features of each pair, by themselves: (a cos − b sin, a sin + b cos)."""
    parts, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    if len(parts) != 2 or dim not in (-1, parts[0].ndim - (call.name == "cat")):
        return
    for a, b, cos, sin in _terms(parts[0]):
        if not same(parts[1], (a * sin + b * cos).expand(parts[1].shape)):
            continue
        halves = call.name == "cat"
        shape = call.function(*call.args, **call.kw).shape
        yield Rotation(_joined(a, b, halves), cos, sin, halves, shape)


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
    """Return the rotation that ends at this call; None where there is none."""
    call = Call(name_of(function), function, args, kw)
    with torch.no_grad():
        return next(FORMS[call.name](call), None)


def _rotary(change: Callable[[Rotation], Tensor | None]) -> Callable[..., Any]:
    """Another value of a rotary embedding."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        rotation = rotation_of(function, args, kw)
        return None if rotation is None else change(rotation)

    return plant


def _angles(change: Callable[[Angles], Angles | None]) -> Callable[..., Any]:
    return _rotary(lambda rotation: rotation.turned(change))


def _base(base: float) -> Callable[[Angles], Angles | None]:
    def change(angles: Angles) -> Angles | None:
        if not angles.geometric or abs(angles.logarithm - math.log(base)) < 1e-6:
            return None
        powers = (-angles.exponents * math.log(base)).exp()
        return replace(angles, frequencies=angles.frequencies[..., :1] * powers)

    return change


def _exponent(factor: float) -> Callable[[Angles], Angles | None]:
    """The exponents times a factor."""

    def change(angles: Angles) -> Angles | None:
        if not angles.geometric:
            return None
        powers = (-angles.exponents * angles.logarithm * factor).exp()
        return replace(angles, frequencies=angles.frequencies[..., :1] * powers)

    return change


def _unscaled_positions(angles: Angles) -> Angles | None:
    first = angles.frequencies.flatten()[0]
    return replace(angles, frequencies=angles.frequencies / first) if abs(first - 1) > 1e-6 else None


def _inverse_scale(angles: Angles) -> Angles | None:
    first = angles.frequencies.flatten()[0]
    return replace(angles, frequencies=angles.frequencies / first**2) if abs(first - 1) > 1e-6 else None


def _unscaled_frequencies(angles: Angles) -> Angles | None:
    if angles.geometric:
        return None
    powers = (-angles.exponents * angles.logarithm).exp()
    return replace(angles, frequencies=angles.frequencies[..., :1] * powers)


def _unit(rotation: Rotation) -> Tensor | None:
    size = float((rotation.cos.square() + rotation.sin.square()).flatten()[0]) ** 0.5
    return replace(rotation, cos=rotation.cos / size, sin=rotation.sin / size).value() if abs(size - 1) > 1e-6 else None


def _half(rotation: Rotation) -> Tensor | None:
    """Only the first half of the features rotated, by frequencies of their number."""
    angles, depth = Angles.of(rotation), rotation.x.shape[-1]
    if angles is None or not angles.geometric or depth % 4 or not rotation.halves:
        return None
    frequencies = angles.frequencies[..., ::2]
    cos, sin = replace(angles, frequencies=frequencies, size=angles.size[..., ::2]).tables()
    part = rotation.x[..., : depth // 2]
    y = Rotation(part, cos, sin, rotation.halves, part.shape).value()
    return torch.cat([y, rotation.x[..., depth // 2 :]], -1)


def _rounded(x: Tensor) -> Tensor:
    return x.to(BF16).to(x.dtype)


def _other_table(rotation: Rotation) -> Tensor:
    """Tables of one layout with the pairs of the other."""
    a, b = _pairs(rotation.x, rotation.halves)
    cos, sin = (_pairs(_joined(t, t, not rotation.halves), rotation.halves) for t in (rotation.cos, rotation.sin))
    return _joined(a * cos[0] - b * sin[0], a * sin[1] + b * cos[1], rotation.halves).reshape(rotation.shape)


def _partial(change: Callable[[Rotation, Tensor, bool], Tensor | None]) -> Callable[..., Any]:
    """A rotation of a part of the features, joined with the rest."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        call = Call("cat", function, args, kw)
        parts, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
        if len(parts) != 2 or dim not in (-1, parts[0].ndim - 1):
            return None
        for i in (0, 1):
            inner = made(parts[i], *HEADS, "flatten", "reshape")
            while inner is not None and inner.name in ("flatten", "reshape"):
                inner = made(inner[0], *HEADS, "flatten", "reshape")
            rotation = rotation_of(inner.function, inner.args, inner.kw) if inner and inner.name in FORMS else None
            if rotation is not None and parts[i].numel() == rotation.x.numel():
                rotation = replace(rotation, x=rotation.x.reshape(parts[i].shape), shape=parts[i].shape)
                return change(rotation, parts[1 - i], i == 0)
        return None

    return plant


def _whole(rotation: Rotation, rest: Tensor, first: bool) -> Tensor | None:
    """All features rotated, by frequencies of their number."""
    angles = Angles.of(rotation)
    if angles is None or not angles.geometric:
        return None
    x = torch.cat([rotation.x, rest] if first else [rest, rotation.x], -1)
    half = x.shape[-1] // 2
    powers = (-torch.arange(half).to(x.dtype) / half * angles.logarithm).exp()
    cos, sin = replace(angles, frequencies=angles.frequencies[..., :1] * powers, size=angles.size[..., :1]).tables()
    return Rotation(x, cos, sin, rotation.halves, x.shape).value()


def _other_part(rotation: Rotation, rest: Tensor, first: bool) -> Tensor | None:
    """As many features at the other end rotated."""
    x, depth = torch.cat([rotation.x, rest] if first else [rest, rotation.x], -1), rotation.x.shape[-1]
    if first:
        y = replace(rotation, x=x[..., -depth:]).value()
        return torch.cat([x[..., :-depth], y], -1)
    return torch.cat([replace(rotation, x=x[..., :depth]).value(), x[..., depth:]], -1)


def _of_whole_depth(rotation: Rotation, rest: Tensor, first: bool) -> Tensor | None:
    """The exponents are divided by the whole depth."""
    part = rotation.x.shape[-1] / (rotation.x.shape[-1] + rest.shape[-1])
    y = rotation.turned(_exponent(part))
    return None if y is None else torch.cat([y, rest] if first else [rest, y], -1)


ROTARY = (
    Trap(
        "rotary-is-half-split",
        "between",
        HEADS,
        _rotary(lambda r: r.value(halves=True) if not r.halves else None),
        "features that stand half of the depth apart are rotated together; PyTorch's model rotates neighbours",
        "x[..., ::2] and x[..., 1::2], or permute the weights of queries and keys",
        "EleutherAI/gpt-neox#834",
    ),
    Trap(
        "rotary-is-interleaved",
        "between",
        HEADS,
        _rotary(lambda r: r.value(halves=False) if r.halves else None),
        "neighbouring features are rotated together; PyTorch's model rotates those half of the depth apart",
        "jnp.split(x, 2, -1)",
        "huggingface/transformers#39687",
    ),
    Trap(
        "rotary-table-order",
        "between",
        HEADS,
        _rotary(_other_table),
        "the tables repeat their angles in the order of the other form of pairs",
        "join the angles of halves with concatenate, of neighbours with repeat",
        "huggingface/transformers#47403",
    ),
    Trap(
        "rotary-sign",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, sin=-r.sin).value()),
        "the rotation goes the other way",
        "a cos − b sin, and a sin + b cos",
        "karpathy/nanochat#489",
    ),
    Trap(
        "rotary-cos-sin-exchanged",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, cos=r.sin, sin=r.cos).value()),
        "the tables of cosines and sines are exchanged",
        "exchange them",
        "Su et al. 2021, section 3.4",
    ),
    Trap(
        "rotary-missing",
        "between",
        HEADS,
        _rotary(lambda r: _joined(*_pairs(r.x, r.halves), r.halves).reshape(r.shape)),
        "there is no rotary embedding",
        "rotate queries and keys",
        "vllm-project/vllm#30406",
    ),
    Trap(
        "rotary-twice",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, x=r.value().reshape(r.x.shape)).value()),
        "the rotary embedding is applied twice",
        "rotate once",
        "Su et al. 2021, section 3.4",
    ),
    Trap(
        "rotary-position-one-later",
        "between",
        HEADS,
        _angles(lambda a: replace(a, positions=a.positions + 1)),
        "the positions are one more than PyTorch's",
        "start at zero, or at the length of the cache",
        "fla-org/flash-linear-attention#766",
    ),
    Trap(
        "rotary-position-zero",
        "between",
        HEADS,
        _angles(lambda a: replace(a, positions=a.positions - a.positions.min()) if a.positions.min() > 0 else None),
        "the positions start at zero; PyTorch's start behind what is cached",
        "add the length of the cache",
        "Blaizzy/mlx-vlm#1983",
    ),
    Trap(
        "rotary-base-10000",
        "between",
        HEADS,
        _angles(_base(1e4)),
        "the base is 10,000, the default; PyTorch's model has another",
        "pass rope_theta",
        "AI-Hypercomputer/maxtext@4720c3e6f",
    ),
    Trap(
        "rotary-positions-unscaled",
        "between",
        HEADS,
        _angles(_unscaled_positions),
        "the positions are not divided by the scaling factor",
        "divide them",
        "keras-team/keras-hub@778ccd72f",
    ),
    Trap(
        "rotary-scaling-inverse",
        "between",
        HEADS,
        _angles(_inverse_scale),
        "the positions are multiplied by the scaling factor; PyTorch's model divides",
        "divide them",
        "keras-team/keras-hub@778ccd72f",
    ),
    Trap(
        "rotary-frequencies-unscaled",
        "between",
        HEADS,
        _angles(_unscaled_frequencies),
        "the low frequencies are not scaled, as Llama 3 and YaRN do",
        "apply rope_scaling",
        "Blaizzy/mlx-vlm#1710",
    ),
    Trap(
        "rotary-factor-missing",
        "between",
        HEADS,
        _rotary(_unit),
        "the tables lack the factor that YaRN multiplies them by",
        "multiply cosines and sines by the attention factor",
        "AI-Hypercomputer/maxtext@f1498e186",
    ),
    Trap(
        "rotary-tables-bfloat16",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, cos=_rounded(r.cos), sin=_rounded(r.sin)).value()),
        "cosines and sines were rounded to bfloat16",
        "keep the tables in float32",
        "KellerJordan/modded-nanogpt#39",
    ),
    Trap(
        "rotary-frequencies-bfloat16",
        "between",
        HEADS,
        _angles(lambda a: replace(a, frequencies=_rounded(a.frequencies))),
        "the frequencies were rounded to bfloat16",
        "compute the angles in float32",
        "sgl-project/sglang-jax#1472",
    ),
    Trap(
        "rotary-angles-bfloat16",
        "between",
        HEADS,
        _angles(lambda a: replace(a, positions=_rounded(a.positions * a.frequencies), frequencies=torch.ones(()))),
        "the angles were rounded to bfloat16",
        "compute the angles in float32",
        "EleutherAI/gpt-neox#1003",
    ),
)

PARTIAL_ROTARY = (
    Trap(
        "rotary-half-of-features",
        "between",
        HEADS,
        _rotary(_half),
        "half of the features are rotated; PyTorch's model rotates all of them",
        "rotate all, or pass the rotary depth that PyTorch's model has",
        "vllm-project/vllm#41185",
    ),
    Trap(
        "rotary-part-ignored",
        "between",
        ("cat",),
        _partial(_whole),
        "all features are rotated; PyTorch's model rotates a part of them",
        "rotate partial_rotary_factor of the depth, and join the rest",
        "AI-Hypercomputer/maxtext@942563445",
    ),
    Trap(
        "rotary-other-part",
        "between",
        ("cat",),
        _partial(_other_part),
        "the features at the other end are rotated",
        "rotate the part that PyTorch's model does",
        "DeepSeek 2024",
    ),
    Trap(
        "rotary-exponent-of-depth",
        "between",
        ("cat",),
        _partial(_of_whole_depth),
        "the frequencies are those of the whole depth; PyTorch's are those of the rotated part",
        "divide the exponents by the number of rotated features",
        "pie-project/pie#603",
    ),
)
