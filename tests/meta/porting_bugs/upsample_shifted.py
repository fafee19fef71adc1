"""mlx-audio's Kokoro pads the transposed convolution's output on the left instead of the right.

Source: Blaizzy/mlx-audio#858.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, STYLE = 8, 6


class AdaIN1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(CHANNELS)
        self.fc = nn.Linear(STYLE, 2 * CHANNELS)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.fc(style)[..., None].chunk(2, 1)
        return (1 + gamma) * self.norm(x) + beta


class AdainResBlk1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = AdaIN1d(), AdaIN1d()
        self.pool = nn.ConvTranspose1d(CHANNELS, CHANNELS, 3, 2, padding=1, output_padding=1)
        self.conv1 = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.pool(nn.functional.leaky_relu(self.norm1(x, style), 0.2)))
        y = self.conv2(nn.functional.leaky_relu(self.norm2(y, style), 0.2))
        return (y + nn.functional.interpolate(x, scale_factor=2, mode="nearest")) / 2**0.5


class Torch(nn.Module):
    """Takes (batch, time, channels) and a style of each."""

    def __init__(self) -> None:
        super().__init__()
        self.F0 = nn.ModuleList(AdainResBlk1d() for _ in range(2))

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        for block in self.F0:
            x = block(x, style)
        return x.transpose(1, 2)


class FlaxAdaIN1d(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(STYLE, 2 * CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        gamma, beta = jnp.split(self.fc(style)[:, None], 2, -1)
        centered = x - x.mean(1, keepdims=True)
        normed = centered * jax.lax.rsqrt(jnp.square(centered).mean(1, keepdims=True) + 1e-5)
        return (1 + gamma) * normed + beta


class FlaxAdainResBlk1d(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.norm1, self.norm2 = FlaxAdaIN1d(rngs), FlaxAdaIN1d(rngs)
        sides = (1, 1) if wrong else (1, 2)
        self.pool = nnx.ConvTranspose(CHANNELS, CHANNELS, (3,), (2,), padding=[sides], transpose_kernel=True, rngs=rngs)
        self.conv1 = nnx.Conv(CHANNELS, CHANNELS, 3, padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(CHANNELS, CHANNELS, 3, padding=1, rngs=rngs)

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        y = self.pool(nnx.leaky_relu(self.norm1(x, style), 0.2))
        if self.wrong:
            y = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))
        y = self.conv2(nnx.leaky_relu(self.norm2(self.conv1(y), style), 0.2))
        return (y + jnp.repeat(x, 2, 1)) / 2**0.5


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.F0 = nnx.List([FlaxAdainResBlk1d(wrong, rngs) for _ in range(2)])

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        for block in self.F0:
            x = block(x, style)
        return x


BUG = Bug(
    source="Blaizzy/mlx-audio#858",
    what="The transposed convolution lacks its last sample, and a zero in front shifts the rest by one.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 5, CHANNELS), numbers(2, STYLE, seed=1)),
    layer="F0.0.pool",
    named=r"output.?padding|shift|misalign|\bpads?\b|padding|crop|other side",
    kind="convolution",
    blind=True,
    trap_added=True,
)
