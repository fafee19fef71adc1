"""Every mistake in tables and buckets of positions, in graphs, and in short-time Fourier transforms, planted."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from .planted import Case, sequence

BLOCK, STEPS = "block", 5
TOKEN, POSITIONS = np.linspace(-1.0, 1.0, 6), np.cos(np.arange(36.0)).reshape(1, 6, 6)
TOKEN_TORCH, POSITIONS_TORCH = torch.from_numpy(TOKEN), torch.from_numpy(POSITIONS)
# By bucket, what a query takes of a key.
BIAS = np.sin(np.arange(32.0))
BIAS_TORCH = torch.from_numpy(BIAS)
RELATIVE = np.arange(STEPS) - np.arange(STEPS)[:, None]
BOTH_SIDED, ONE_SIDED = (RELATIVE > 0) * 16 + abs(RELATIVE), np.maximum(-RELATIVE, 0)
EDGES = np.array([[0, 1, 1, 2, 3, 0, 1, 2, 3, 4], [1, 0, 2, 1, 4, 0, 1, 2, 3, 4]])
SIZE, HOP = 10, 2


def classed(x: Tensor) -> Tensor:
    """A class token in front, then positions."""
    return torch.tanh(torch.cat([TOKEN_TORCH.expand(2, 1, 6), x], 1) + POSITIONS_TORCH)


def classed_late(x: Any) -> Any:
    """Positions, then a class token in front."""
    return jnp.tanh(jnp.concatenate([jnp.broadcast_to(TOKEN, (2, 1, 6)), x + POSITIONS[:, 1:]], 1))


def both_sided(x: Tensor) -> Tensor:
    relative = torch.arange(STEPS) - torch.arange(STEPS)[:, None]
    return BIAS_TORCH[(relative > 0).long() * 16 + relative.abs()] @ x


def one_sided(x: Tensor) -> Tensor:
    relative = torch.arange(STEPS) - torch.arange(STEPS)[:, None]
    return BIAS_TORCH[torch.where(relative > 0, 0, -relative)] @ x


def buckets(at: np.ndarray) -> Any:
    return lambda x: BIAS[at] @ x


def convolved(x: Tensor) -> Tensor:
    """A graph convolution whose messages are divided by the roots of both degrees."""
    senders, receivers = torch.from_numpy(EDGES)
    degrees = x.new_zeros(STEPS).index_add(0, receivers, x.new_ones(len(receivers)))
    weights = degrees[senders].rsqrt() * degrees[receivers].rsqrt()
    return torch.zeros_like(x).index_add(1, receivers, x[:, senders] * weights[:, None])


def convolved_jax(count: float) -> Any:
    """The same in JAX, where each edge counts so much."""
    senders, receivers = EDGES

    def convolve(x: Any) -> Any:
        degrees = jnp.zeros(STEPS).at[receivers].add(count)
        weights = (degrees[senders] * degrees[receivers]) ** -0.5
        return jnp.zeros_like(x).at[:, receivers].add(x[:, senders] * weights[:, None])

    return convolve


def samples(x: Tensor) -> Tensor:
    """The samples of a spectrum."""
    spectrum = torch.complex(x, torch.tanh(x)).transpose(1, 2)
    window = torch.hann_window(SIZE, dtype=x.dtype)
    return torch.istft(spectrum, SIZE, HOP, SIZE, window=window).view(2, 4, 2)


def samples_jax(power: int) -> Any:
    """The same in JAX, with the windows' sum of this power."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SIZE) / SIZE)
    at = HOP * np.arange(STEPS)[:, None] + np.arange(SIZE)

    def invert(x: Any) -> Any:
        frames = jnp.fft.irfft(x + 1j * jnp.tanh(x), SIZE) * window
        total = jnp.zeros((2, SIZE + HOP * (STEPS - 1))).at[:, at].add(frames)
        weight = jnp.zeros(total.shape[1]).at[at].add(jnp.broadcast_to(window**power, at.shape))
        return (total / weight)[:, SIZE // 2 : -SIZE // 2].reshape(2, 4, 2)

    return invert


POSITIONS_AND_GRAPHS = (
    Case("position-of-class-token-missing", sequence(classed, classed_late), BLOCK),
    Case("relative-buckets-one-sided", sequence(both_sided, buckets(ONE_SIDED)), BLOCK),
    Case("relative-buckets-both-sided", sequence(one_sided, buckets(BOTH_SIDED)), BLOCK),
    Case("edges-counted-twice", sequence(convolved, convolved_jax(2.0)), BLOCK),
    Case("istft-window-not-squared", sequence(samples, samples_jax(1), inner=2), BLOCK),
)
