"""mlx-audio's Kokoro divides the overlapping frames by the sum of the windows, not of their squares.

Source: Blaizzy/mlx-audio#859.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

SIZE, HOP, CHANNELS = 16, 4, 8
BINS = SIZE // 2 + 1


class TorchSTFT(nn.Module):
    def forward(self, magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(SIZE, dtype=magnitude.dtype)
        return torch.istft(torch.polar(magnitude, phase), SIZE, HOP, SIZE, window=window)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_post = nn.Conv1d(CHANNELS, 2 * BINS, 7, padding=3)
        self.stft = TorchSTFT()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_post(nn.functional.leaky_relu(self.conv_pre(x), 0.1))
        return self.stft(x[:, :BINS].exp(), x[:, BINS:].sin())


class Torch(nn.Module):
    """Takes (batch, time, channels), gives (batch, samples)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(CHANNELS, CHANNELS)
        self.generator = Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.generator(self.encoder(x).transpose(1, 2))


class FlaxSTFT(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong = wrong

    def __call__(self, magnitude: jax.Array, phase: jax.Array) -> jax.Array:
        """Take (batch, frames, bins)."""
        batch, count, _ = magnitude.shape
        window = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(SIZE, dtype=magnitude.dtype) / SIZE)
        frames = jnp.fft.irfft(magnitude * jnp.exp(1j * phase), SIZE, axis=-1) * window
        at = HOP * jnp.arange(count)[:, None] + jnp.arange(SIZE)
        samples = jnp.zeros((batch, SIZE + HOP * (count - 1)), frames.dtype)
        weights = jnp.broadcast_to(window if self.wrong else window**2, at.shape)
        total, weight = samples.at[:, at].add(frames), samples[0].at[at].add(weights)
        middle = slice(SIZE // 2, -(SIZE // 2))
        return total[:, middle] / weight[middle]


class FlaxGenerator(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.conv_pre = nnx.Conv(CHANNELS, CHANNELS, 3, padding=1, rngs=rngs)
        self.conv_post = nnx.Conv(CHANNELS, 2 * BINS, 7, padding=3, rngs=rngs)
        self.stft = FlaxSTFT(wrong)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_post(nnx.leaky_relu(self.conv_pre(x), 0.1))
        return self.stft(jnp.exp(x[..., :BINS]), jnp.sin(x[..., BINS:]))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.encoder = nnx.Linear(CHANNELS, CHANNELS, rngs=rngs)
        self.generator = FlaxGenerator(wrong, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.generator(self.encoder(x))


BUG = Bug(
    source="Blaizzy/mlx-audio#859",
    what="The inverse STFT divides by the sum of the windows, so every sample is a quarter too small.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 12, CHANNELS),),
    layer="generator.stft",
    named=r"window|overlap|istft|inverse (stft|short|fourier)|factor|scale",
    kind="convolution",
    blind=True,
    trap_added=True,
)
