"""Diffusers' Flax UNet puts sines before cosines whatever `flip_sin_to_cos` says.

Source: huggingface/diffusers#1369.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, EMBEDDING, GROUPS = 16, 32, 4


class Timesteps(nn.Module):
    """The embedding of Stable Diffusion: `flip_sin_to_cos`, and no shift of the frequencies."""

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        half = CHANNELS // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
        angles = timesteps[:, None].float() * exponents.exp()
        return torch.cat([angles.cos(), angles.sin()], -1)


class TimestepEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(CHANNELS, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class ResnetBlock2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, CHANNELS), nn.GroupNorm(GROUPS, CHANNELS)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.time_emb_proj = nn.Linear(EMBEDDING, CHANNELS)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        y = y + self.time_emb_proj(nn.functional.silu(temb))[..., None, None]
        return x + self.conv2(nn.functional.silu(self.norm2(y)))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.time_proj, self.time_embedding = Timesteps(), TimestepEmbedding()
        self.resnet = ResnetBlock2D()
        self.conv_out = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        temb = self.time_embedding(self.time_proj(timesteps))
        return self.conv_out(self.resnet(self.conv_in(sample), temb))


class FlaxTimesteps(linen.Module):
    sines_first: bool
    shift: float = 0.0

    @linen.compact
    def __call__(self, timesteps: jax.Array) -> jax.Array:
        half = CHANNELS // 2
        exponents = -math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - self.shift)
        angles = timesteps[:, None].astype(jnp.float32) * jnp.exp(exponents)
        parts = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(parts if self.sines_first else parts[::-1], -1)


class FlaxTimestepEmbedding(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.silu(linen.Dense(EMBEDDING, name="linear_1")(x))
        return linen.Dense(EMBEDDING, name="linear_2")(x)


class FlaxResnetBlock2D(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        y = linen.silu(linen.GroupNorm(GROUPS, epsilon=1e-5, name="norm1")(x))
        y = linen.Conv(CHANNELS, (3, 3), padding=1, name="conv1")(y)
        y = y + linen.Dense(CHANNELS, name="time_emb_proj")(linen.silu(temb))[:, None, None]
        y = linen.silu(linen.GroupNorm(GROUPS, epsilon=1e-5, name="norm2")(y))
        return x + linen.Conv(CHANNELS, (3, 3), padding=1, name="conv2")(y)


class Port(linen.Module):
    sines_first: bool = False
    shift: float = 0.0

    @linen.compact
    def __call__(self, sample: jax.Array, timesteps: jax.Array) -> jax.Array:
        temb = FlaxTimesteps(self.sines_first, self.shift, name="time_proj")(timesteps)
        temb = FlaxTimestepEmbedding(name="time_embedding")(temb)
        x = linen.Conv(CHANNELS, (3, 3), padding=1, name="conv_in")(sample)
        x = FlaxResnetBlock2D(name="resnet")(x, temb)
        return linen.Conv(4, (3, 3), padding=1, name="conv_out")(x)


def inputs() -> tuple[np.ndarray, ...]:
    return numbers(2, 4, 8, 6), np.array([3, 871])


BUG = Bug(
    source="huggingface/diffusers#1369",
    what="The sines of the timestep embedding stand before its cosines.",
    torch=Torch,
    port=lambda wrong: Port(wrong),
    inputs=inputs,
    layer="time_proj",
    named=r"sin.*cos|cos.*sin|swap|flip|exchang|halves",
    kind="embedding",
    blind=True,
)
