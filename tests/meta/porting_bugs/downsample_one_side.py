"""Diffusers' Flax encoder pads both sides of a downsampling convolution; Stable Diffusion's pads right and bottom.

Source: huggingface/diffusers#5137.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, GROUPS = 32, 8


class ResnetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, CHANNELS, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        return x + self.conv2(nn.functional.silu(self.norm2(y)))


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.downsample = ResnetBlock(), Downsample()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.downsample(self.block(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.down = nn.ModuleList(DownBlock() for _ in range(2))
        self.norm_out = nn.GroupNorm(GROUPS, CHANNELS, eps=1e-6)
        self.conv_out = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down:
            x = block(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class FlaxResnetBlock(linen.Module):
    groups: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.silu(linen.GroupNorm(self.groups, epsilon=1e-6, name="norm1")(x))
        y = linen.Conv(CHANNELS, (3, 3), padding=1, name="conv1")(y)
        y = linen.silu(linen.GroupNorm(self.groups, epsilon=1e-6, name="norm2")(y))
        return x + linen.Conv(CHANNELS, (3, 3), padding=1, name="conv2")(y)


class FlaxDownsample(linen.Module):
    both_sides: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.both_sides:
            return linen.Conv(CHANNELS, (3, 3), 2, padding=((1, 1), (1, 1)), name="conv")(x)
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return linen.Conv(CHANNELS, (3, 3), 2, padding="VALID", name="conv")(x)


class FlaxDownBlock(linen.Module):
    both_sides: bool
    groups: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = FlaxResnetBlock(self.groups, name="block")(x)
        return FlaxDownsample(self.both_sides, name="downsample")(x)


class Port(linen.Module):
    both_sides: bool = False
    groups: int = GROUPS

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(CHANNELS, (3, 3), padding=1, name="conv_in")(x)
        for i in range(2):
            x = FlaxDownBlock(self.both_sides, self.groups, name=f"down_{i}")(x)
        x = linen.silu(linen.GroupNorm(GROUPS, epsilon=1e-6, name="norm_out")(x))
        return linen.Conv(4, (3, 3), padding=1, name="conv_out")(x)


BUG = Bug(
    source="huggingface/diffusers#5137",
    what="The strided convolution pads one pixel at each side instead of one at the right and the bottom.",
    torch=Torch,
    port=lambda wrong: Port(wrong),
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer="down.0.downsample",
    named=r"\bpad",
    kind="convolution",
    blind=True,
    trap_added=True,
)
