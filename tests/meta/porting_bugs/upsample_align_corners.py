"""A Flax port of DPT resizes with JAX's grid; the model aligns the corners.

Source: google/flax#2210.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS = 8


class FeatureFusionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.projection = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv2(self.conv1(x.relu()).relu())
        return self.projection(self.upsample(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.fusion = nn.ModuleList(FeatureFusionBlock() for _ in range(2))
        self.head = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.neck(x)
        for block in self.fusion:
            x = block(x)
        return self.head(x)


def along(x: jax.Array, axis: int) -> jax.Array:
    """Double an axis so that its first and last values stay at the ends."""
    size = x.shape[axis]
    at = jnp.arange(2 * size, dtype=x.dtype) * ((size - 1) / (2 * size - 1))
    low = jnp.clip(jnp.floor(at).astype(int), 0, size - 2)
    part = jnp.expand_dims(at - low, [i for i in range(x.ndim) if i != axis])
    return jnp.take(x, low, axis) * (1 - part) + jnp.take(x, low + 1, axis) * part


class FlaxUpsample(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        if self.wrong:
            return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
        return along(along(x, 1), 2)


class FlaxFeatureFusionBlock(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.conv1, self.conv2 = (nnx.Conv(CHANNELS, CHANNELS, (3, 3), padding=1, rngs=rngs) for _ in range(2))
        self.upsample = FlaxUpsample(wrong)
        self.projection = nnx.Conv(CHANNELS, CHANNELS, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.conv2(nnx.relu(self.conv1(nnx.relu(x))))
        return self.projection(self.upsample(x))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.neck = nnx.Conv(3, CHANNELS, (3, 3), padding=1, rngs=rngs)
        self.fusion = nnx.List([FlaxFeatureFusionBlock(wrong, rngs) for _ in range(2)])
        self.head = nnx.Conv(CHANNELS, 1, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.neck(x)
        for block in self.fusion:
            x = block(x)
        return self.head(x)


BUG = Bug(
    source="google/flax#2210",
    what="The upsampling takes pixels as areas; the model aligns the corners.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 5, 4),),
    layer="fusion.0.upsample",
    named=r"align.?corners|corners|resiz|interpol|half.?pixel",
    kind="vision",
    blind=True,
)
