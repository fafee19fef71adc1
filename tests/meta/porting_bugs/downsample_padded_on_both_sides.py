"""The port pads both sides in front of a strided convolution; Stable Diffusion's model pads one.

Source: huggingface/diffusers#5137.
"""

from __future__ import annotations

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.downsample = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)
        self.conv_out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.conv_in(x))
        return self.conv_out(nn.functional.silu(self.downsample(nn.functional.pad(x, (0, 1, 0, 1)))))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.silu(linen.Conv(8, (3, 3), padding=1, name="conv_in")(x))
        pads = ((1, 1), (1, 1)) if self.wrong else ((0, 1), (0, 1))
        x = linen.silu(linen.Conv(8, (3, 3), 2, pads, name="downsample")(x))
        return linen.Conv(4, (3, 3), padding=1, name="conv_out")(x)


BUG = Bug(
    source="huggingface/diffusers#5137",
    what="pads both sides; PyTorch's model pads behind",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer=("downsample", "(the network)"),
    named=r"pad",
    kind="convolution",
    trap_added=True,
)
