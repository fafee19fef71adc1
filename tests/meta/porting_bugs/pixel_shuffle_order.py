"""onnx2tf takes the channels of a pixel shuffle as (rows, columns, channels) instead of (channels, rows, columns).

Source: PINTO0309/onnx2tf#92.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, SCALE = 8, 2


class Upsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.upsampler = Upsampler()
        self.conv_last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_first(x)
        for conv in self.body:
            x = x + nn.functional.leaky_relu(conv(x), 0.2)
        return self.conv_last(self.upsampler(x))


def conv(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (3, 3), padding=1, rngs=rngs)


class FlaxUpsampler(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.conv = conv(CHANNELS, CHANNELS * SCALE**2, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        x = self.conv(x)
        if self.wrong:
            x = x.reshape(batch, height, width, SCALE, SCALE, CHANNELS).transpose(0, 1, 3, 2, 4, 5)
        else:
            x = x.reshape(batch, height, width, CHANNELS, SCALE, SCALE).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, height * SCALE, width * SCALE, CHANNELS)


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.conv_first = conv(3, CHANNELS, rngs)
        self.body = nnx.List([conv(CHANNELS, CHANNELS, rngs) for _ in range(2)])
        self.upsampler = FlaxUpsampler(wrong, rngs)
        self.conv_last = conv(CHANNELS, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_first(x)
        for layer in self.body:
            x = x + nnx.leaky_relu(layer(x), 0.2)
        return self.conv_last(self.upsampler(x))


BUG = Bug(
    source="PINTO0309/onnx2tf#92",
    what="Channels are split with the rows and columns of the shuffle first.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 6, 5),),
    layer="upsampler.shuffle",
    named=r"shuffle|depth.?to.?space|channels?.*order|order.*channel|CRD|DCR",
    kind="vision",
    blind=True,
)
