"""The PyTorch port of CMMD makes images smaller without antialiasing; the original uses it.

Source: sayakpaul/cmmd-pytorch#4.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

WIDTH, SIDE = 12, 8


class Resize(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(images, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resize = Resize()
        self.patch_embedding = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.layrnorm = nn.LayerNorm(WIDTH)
        self.visual_projection = nn.Linear(WIDTH, 6, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(self.resize(images)).flatten(2).transpose(1, 2)
        return self.visual_projection(self.layrnorm(x).mean(1))


class FlaxResize(nnx.Module):
    def __init__(self, antialias: bool) -> None:
        self.antialias = antialias

    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (images.shape[0], SIDE, SIDE, images.shape[-1])
        return jax.image.resize(images, shape, "bicubic", antialias=self.antialias)


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.resize = FlaxResize(not wrong)
        self.patch_embedding = nnx.Conv(3, WIDTH, (4, 4), 4, padding="VALID", use_bias=False, rngs=rngs)
        self.layrnorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.visual_projection = nnx.Linear(WIDTH, 6, use_bias=False, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patch_embedding(self.resize(images))
        return self.visual_projection(self.layrnorm(x.reshape(x.shape[0], -1, WIDTH)).mean(1))


BUG = Bug(
    source="sayakpaul/cmmd-pytorch#4",
    what="Images are made smaller without antialiasing.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 17, 13),),
    layer="resize",
    named=r"anti-?alias|resiz|interpol",
    kind="vision",
    blind=True,
    trap_added=True,
)
