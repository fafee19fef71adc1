"""Every mistake in rotary embeddings, planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from .planted import Case, Make, sequence

BLOCK, HEADS, DEPTH = "block", 2, 8
STEPS = 5


def angles(base: float = 1e4, start: int = 0, depth: int = DEPTH, whole: int | None = None) -> np.ndarray:
    """(steps, depth / 2)."""
    frequencies = base ** -(np.arange(0, depth, 2) / (whole or depth))
    return (np.arange(STEPS) + start)[:, None] * frequencies


def llama3(frequencies: np.ndarray) -> np.ndarray:
    """The lower half of the frequencies is divided by eight."""
    return np.where(np.arange(frequencies.shape[-1]) < frequencies.shape[-1] // 2, frequencies, frequencies / 8)


# --- PyTorch's forms


def half_split(table: np.ndarray, size: float = 1.0) -> Callable[[Tensor], Tensor]:
    """As transformers has it."""
    cos, sin = (torch.from_numpy(size * np.concatenate([f(table)] * 2, -1))[None, :, None] for f in (np.cos, np.sin))

    def rotate(x: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    return rotate


def by_parts(table: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Both halves by themselves."""
    cos, sin = (torch.from_numpy(f(table))[None, :, None] for f in (np.cos, np.sin))

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return rotate


def neighbours(table: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Each pair is stacked."""
    cos, sin = (torch.from_numpy(f(table))[None, :, None] for f in (np.cos, np.sin))

    def rotate(x: Tensor) -> Tensor:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    return rotate


def complex_pairs(table: np.ndarray) -> Callable[[Tensor], Tensor]:
    """As Meta's LLaMA has it."""
    turn = torch.polar(torch.ones(table.shape, dtype=torch.float64), torch.from_numpy(table))[None, :, None]

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(3).type_as(x)

    return rotate


# --- the port's


def port(table: Any, halves: bool = True, size: float = 1.0, sign: float = 1.0) -> Callable[[Any], Any]:
    cos, sin = (size * np.cos(table)[:, None], sign * size * np.sin(table)[:, None])

    def rotate(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1) if halves else (x[..., ::2], x[..., 1::2])
        y = a * cos - b * sin, a * sin + b * cos
        return jnp.concatenate(y, -1) if halves else jnp.stack(y, -1).reshape(x.shape)

    return rotate


def exchanged(table: np.ndarray) -> Callable[[Any], Any]:
    return port(np.pi / 2 - table)


def tables_in_other_order(table: np.ndarray) -> Callable[[Any], Any]:
    """Angles of each pair side by side, features of each pair half of the depth apart."""
    cos, sin = (np.repeat(f(table), 2, -1)[:, None] for f in (np.cos, np.sin))

    def rotate(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1)
        return x * cos + jnp.concatenate([-b, a], -1) * sin

    return rotate


def bfloat16(table: np.ndarray) -> np.ndarray:
    return table.astype(ml_dtypes.bfloat16).astype(np.float64)


def rounded_tables(table: np.ndarray) -> Callable[[Any], Any]:
    cos, sin = (bfloat16(f(table))[:, None] for f in (np.cos, np.sin))

    def rotate(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    return rotate


def part(rotate: Any, first: bool = True, depth: int = 4, join: Any = jnp.concatenate) -> Callable[[Any], Any]:
    """Some features rotated, and the rest as they are."""

    def change(x: Any) -> Any:
        if first:
            return join([rotate(x[..., :depth]), x[..., depth:]], -1)
        return join([x[..., :-depth], rotate(x[..., -depth:])], -1)

    return change


def attention(right: Any, wrong: Any) -> Make:
    """Scores of queries that are rotated, with keys that are not: a change of both would be seen less."""

    def torch_side(x: Tensor) -> Tensor:
        q = right(x.view(2, STEPS, HEADS, DEPTH))
        return q.flatten(2) + x

    def flax_side(x: Any) -> Any:
        return wrong(x.reshape(2, STEPS, HEADS, DEPTH)).reshape(x.shape) + x

    return sequence(torch_side, flax_side, width=HEADS * DEPTH, inner=HEADS * DEPTH)


def normed(rotate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm with a factor for each feature, and then the rotation."""
    scale = torch.linspace(0.5, 2.0, DEPTH, dtype=torch.float64)
    return lambda x: rotate(torch.nn.functional.rms_norm(x, (DEPTH,), scale, 1e-6))


def normed_last(rotate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The rotation, and then the norm."""
    scale = np.linspace(0.5, 2.0, DEPTH)

    def change(x: Any) -> Any:
        y = rotate(x)
        return y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6) * scale

    return change


def half_width(table: np.ndarray) -> Callable[[Any], Any]:
    """Half of the features, by tables of as many angles."""
    cos, sin = (f(table)[:, None] for f in (np.cos, np.sin))

    def rotate(x: Any) -> Any:
        some, rest = jnp.split(x, 2, -1)
        a, b = jnp.split(some, 2, -1)
        return jnp.concatenate([some * cos + jnp.concatenate([-b, a], -1) * sin, rest], -1)

    return rotate


PLAIN = angles()
LONG, LLAMA = angles() / 4, angles(5e5)
SCALED = np.arange(STEPS)[:, None] * llama3(angles()[1])
# The second frequency lies between those that are scaled and those that are not.
RAMPED = np.arange(STEPS)[:, None] * (angles()[1] / np.array([1.0, 5.0, 8.0, 8.0]))
PART, PART_OF_WHOLE = angles(depth=4), angles(depth=4, whole=8)

ROTARY = (
    Case("rotary-is-half-split", attention(neighbours(PLAIN), port(PLAIN)), BLOCK),
    Case("rotary-is-half-split", attention(complex_pairs(PLAIN), port(PLAIN)), BLOCK),
    Case("rotary-is-interleaved", attention(half_split(PLAIN), port(PLAIN, halves=False)), BLOCK),
    Case("rotary-is-interleaved", attention(by_parts(PLAIN), port(PLAIN, halves=False)), BLOCK),
    Case("rotary-table-order", attention(half_split(PLAIN), tables_in_other_order(PLAIN)), BLOCK),
    Case("rotary-sign", attention(half_split(PLAIN), port(PLAIN, sign=-1.0)), BLOCK),
    Case("rotary-sign", attention(complex_pairs(PLAIN), port(PLAIN, halves=False, sign=-1.0)), BLOCK),
    Case("rotary-cos-sin-exchanged", attention(by_parts(PLAIN), exchanged(PLAIN)), BLOCK),
    Case("rotary-missing", attention(half_split(PLAIN), lambda x: x), BLOCK),
    Case("rotary-missing", attention(complex_pairs(PLAIN), lambda x: x), BLOCK),
    Case("rotary-twice", attention(half_split(PLAIN), port(2 * PLAIN)), BLOCK),
    Case("rotary-before-norm", attention(normed(half_split(PLAIN)), normed_last(port(PLAIN))), BLOCK),
    Case("rotary-before-norm", attention(normed(by_parts(PLAIN)), normed_last(port(PLAIN))), BLOCK),
    Case("rotary-position-one-later", attention(half_split(PLAIN), port(angles(start=1))), BLOCK),
    Case("rotary-position-zero", attention(complex_pairs(angles(start=7)), port(PLAIN, halves=False)), BLOCK),
    Case("rotary-base-10000", attention(half_split(LLAMA), port(PLAIN)), BLOCK),
    Case("rotary-base-10000", attention(complex_pairs(LLAMA), port(PLAIN, halves=False)), BLOCK),
    Case("rotary-positions-unscaled", attention(half_split(LONG), port(PLAIN)), BLOCK),
    Case("rotary-scaling-inverse", attention(half_split(LONG), port(4 * PLAIN)), BLOCK),
    Case("rotary-frequencies-unscaled", attention(half_split(SCALED), port(PLAIN)), BLOCK),
    Case("rotary-frequencies-unscaled", attention(by_parts(RAMPED), port(PLAIN)), BLOCK),
    Case(
        "rotary-exponents-scaled",
        attention(half_split(LONG), port(np.arange(STEPS)[:, None] * angles()[1] ** 0.25)),
        BLOCK,
    ),
    Case("rotary-factor-missing", attention(half_split(PLAIN, 1.2), port(PLAIN)), BLOCK),
    Case("rotary-tables-bfloat16", attention(half_split(PLAIN), rounded_tables(PLAIN)), BLOCK),
    Case(
        "rotary-frequencies-bfloat16",
        attention(half_split(PLAIN), port(np.arange(STEPS)[:, None] * bfloat16(PLAIN[1]))),
        BLOCK,
    ),
    Case("rotary-angles-bfloat16", attention(by_parts(PLAIN), port(bfloat16(PLAIN))), BLOCK),
    Case("rotary-half-of-features", attention(half_split(PLAIN), part(port(PART))), BLOCK),
    Case("rotary-half-width-tables", attention(by_parts(PLAIN), half_width(PLAIN)), BLOCK),
    Case("rotary-part-ignored", attention(part(half_split(PART), join=torch.cat), port(PLAIN)), BLOCK),
    Case(
        "rotary-other-part",
        attention(part(complex_pairs(PART), first=False, join=torch.cat), part(port(PART, halves=False))),
        BLOCK,
    ),
    Case(
        "rotary-exponent-of-depth",
        attention(part(by_parts(PART), join=torch.cat), part(port(PART_OF_WHOLE))),
        BLOCK,
    ),
)
