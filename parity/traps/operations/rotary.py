"""Known mistakes in rotary embeddings. A new mistake is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.own_norms import norm_of
from parity.traps.operations.parts import Call, call_of, made, through
from parity.traps.operations.rotary_parts import FORMS, Angles, Rotation, joined, pairs, rotation_of
from parity.traps.planting import Values
from parity.traps.trap import Trap

HEADS = ("add", "cat", "stack", "view_as_real")
NORMS = ("mul", "div", "add", "rms_norm", "layer_norm")
BF16 = torch.bfloat16


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
    """Multiply the exponents by a factor."""

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
    """The powers of the base, from the first two frequencies, or from the last two, if they are scaled alike."""
    if angles.geometric:
        return None
    flat = angles.frequencies.flatten()
    tried = [flat[:1] * (-angles.exponents * log).exp() for log in (angles.logarithm, angles.last_logarithm)]
    for powers in tried:
        scales = flat / powers
        # The lower a frequency, the smaller its scale.
        if (scales <= 1 + 1e-6).all() and (scales[1:] <= scales[:-1] * (1 + 1e-6)).all():
            return replace(angles, frequencies=powers.reshape(angles.frequencies.shape))
    return None


def _scaled_exponents(angles: Angles) -> Angles | None:
    """Divide the exponents by the factor that should divide the positions."""
    first = angles.frequencies.flatten()[0]
    if not angles.geometric or abs(first - 1) < 1e-6:
        return None
    return replace(angles, frequencies=(angles.frequencies / first) ** first)


def _half_tables(rotation: Rotation) -> Tensor | None:
    """Tables of half the depth, taken for those of a rotation of half the features: each feature has its own angle."""
    half = rotation.x.shape[-1] // 2
    if rotation.cos.shape[-1] != half or half % 2 or not rotation.halves:
        return None
    part, rest = rotation.x[..., :half], rotation.x[..., half:]
    a, b = pairs(part, True)
    return torch.cat([part * rotation.cos + joined(-b, a, True) * rotation.sin, rest], -1).reshape(rotation.shape)


def _unit(rotation: Rotation) -> Tensor | None:
    size = float((rotation.cos.square() + rotation.sin.square()).flatten()[0]) ** 0.5
    return replace(rotation, cos=rotation.cos / size, sin=rotation.sin / size).value() if abs(size - 1) > 1e-6 else None


def _half(rotation: Rotation) -> Tensor | None:
    """Rotate only the first half of the features, with the frequencies for that many features."""
    angles, depth = Angles.of(rotation), rotation.x.shape[-1]
    if angles is None or not angles.geometric or depth % 4 or not rotation.halves:
        return None
    frequencies = angles.frequencies[..., ::2]
    cos, sin = replace(angles, frequencies=frequencies, size=angles.size[..., ::2]).tables()
    part = rotation.x[..., : depth // 2]
    y = Rotation(part, cos, sin, rotation.halves, part.shape).value()
    return torch.cat([y, rotation.x[..., depth // 2 :]], -1)


def _before_norm(rotation: Rotation) -> Tensor | None:
    """Normalise after the rotation; PyTorch's model rotates the output of a norm."""
    call = call_of(through(rotation.source))
    norm = norm_of(call.function, call.args, call.kw) if call is not None and call.name in NORMS else None
    if norm is None or norm.x.shape != rotation.x.shape or rotation.shape != rotation.x.shape:
        return None
    return norm.value(replace(rotation, x=norm.x).value())


def _rounded(x: Tensor) -> Tensor:
    return x.to(BF16).to(x.dtype)


def _other_table(rotation: Rotation) -> Tensor:
    """Tables of one layout with the pairs of the other."""
    a, b = pairs(rotation.x, rotation.halves)
    cos, sin = (pairs(joined(t, t, not rotation.halves), rotation.halves) for t in (rotation.cos, rotation.sin))
    return joined(a * cos[0] - b * sin[0], a * sin[1] + b * cos[1], rotation.halves).reshape(rotation.shape)


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
    """Rotate all features, with the frequencies for that many features."""
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
        "features that are half of the depth apart are rotated together; PyTorch's model rotates neighbours",
        "rotate x[..., ::2] with x[..., 1::2], or permute the weights of queries and keys",
        "EleutherAI/gpt-neox#834",
    ),
    Trap(
        "rotary-is-interleaved",
        "between",
        HEADS,
        _rotary(lambda r: r.value(halves=False) if r.halves else None),
        "neighbouring features are rotated together; PyTorch's model rotates those half of the depth apart",
        "rotate the two halves of jnp.split(x, 2, -1) together",
        "huggingface/transformers#39687",
    ),
    Trap(
        "rotary-table-order",
        "between",
        HEADS,
        _rotary(_other_table),
        "the tables repeat their angles in the order of the other form of pairs",
        "repeat the angles with jnp.concatenate for halves, with jnp.repeat for neighbours",
        "huggingface/transformers#47403",
    ),
    Trap(
        "rotary-sign",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, sin=-r.sin).value()),
        "the rotation goes the other way",
        "rotate the pair (a, b) to (a cos − b sin, a sin + b cos)",
        "karpathy/nanochat#489",
    ),
    Trap(
        "rotary-cos-sin-exchanged",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, cos=r.sin, sin=r.cos).value()),
        "the tables of cosines and sines are exchanged",
        "exchange the tables of cosines and sines",
        "Su et al. 2021, section 3.4",
    ),
    Trap(
        "rotary-missing",
        "between",
        HEADS,
        _rotary(lambda r: joined(*pairs(r.x, r.halves), r.halves).reshape(r.shape)),
        "there is no rotary embedding",
        "rotate queries and keys",
        "vllm-project/vllm#30406",
    ),
    Trap(
        "rotary-before-norm",
        "between",
        HEADS,
        _rotary(_before_norm),
        "queries and keys are rotated before they are normalised; PyTorch's model normalises them first",
        "rotate what the norm gives",
        "karpathy/nanochat#743",
    ),
    Trap(
        "rotary-twice",
        "between",
        HEADS,
        _rotary(lambda r: replace(r, x=r.value().reshape(r.x.shape)).value()),
        "the rotary embedding is applied twice",
        "rotate queries and keys once",
        "Su et al. 2021, section 3.4",
    ),
    Trap(
        "rotary-position-one-later",
        "between",
        HEADS,
        _angles(lambda a: replace(a, positions=a.positions + 1)),
        "the positions are one more than PyTorch's",
        "start the positions at 0, or at the length of the cache",
        "fla-org/flash-linear-attention#766",
    ),
    Trap(
        "rotary-position-zero",
        "between",
        HEADS,
        _angles(lambda a: replace(a, positions=a.positions - a.positions.min()) if a.positions.min() > 0 else None),
        "the positions start at zero; PyTorch's start after the cached tokens",
        "add the length of the cache to the positions",
        "Blaizzy/mlx-vlm#1983",
    ),
    Trap(
        "rotary-base-10000",
        "between",
        HEADS,
        _angles(_base(1e4)),
        "the base is 10,000, the default; PyTorch's model has another",
        "take the base from rope_theta in the model's configuration",
        "AI-Hypercomputer/maxtext@4720c3e6f",
    ),
    Trap(
        "rotary-positions-unscaled",
        "between",
        HEADS,
        _angles(_unscaled_positions),
        "the positions are not divided by the scaling factor",
        "divide the positions by the scaling factor",
        "keras-team/keras-hub@778ccd72f",
    ),
    Trap(
        "rotary-scaling-inverse",
        "between",
        HEADS,
        _angles(_inverse_scale),
        "the positions are multiplied by the scaling factor; PyTorch's model divides",
        "divide the positions by the scaling factor",
        "keras-team/keras-hub@778ccd72f",
    ),
    Trap(
        "rotary-frequencies-unscaled",
        "between",
        HEADS,
        _angles(_unscaled_frequencies),
        "the low frequencies are not scaled, as Llama 3 and YaRN do",
        "scale the frequencies as rope_scaling in the model's configuration says",
        "Blaizzy/mlx-vlm#1710",
    ),
    Trap(
        "rotary-exponents-scaled",
        "between",
        HEADS,
        _angles(_scaled_exponents),
        "the scaling factor of the rotary embedding divides the exponents of the frequencies; PyTorch's model divides "
        "the positions by it",
        "divide the positions, or the frequencies themselves",
        "keras-team/keras-hub#1605",
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
        "rotate all features of each head",
        "vllm-project/vllm#41185",
    ),
    Trap(
        "rotary-half-width-tables",
        "between",
        HEADS,
        _rotary(_half_tables),
        "tables of half a head's depth are taken for those of a partial rotary embedding: half of the features are "
        "rotated, each by an angle of its own",
        "repeat the tables for both halves of the features, and rotate all of them",
        "TransformerLensOrg/TransformerLens#1621",
    ),
    Trap(
        "rotary-part-ignored",
        "between",
        ("cat",),
        _partial(_whole),
        "all features are rotated; PyTorch's model rotates a part of them",
        "rotate only partial_rotary_factor * depth features, and join the others unrotated",
        "AI-Hypercomputer/maxtext@942563445",
    ),
    Trap(
        "rotary-other-part",
        "between",
        ("cat",),
        _partial(_other_part),
        "the features at the other end are rotated",
        "rotate the features at the end that PyTorch's model rotates",
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
