"""The port resizes positions with another cubic kernel than PyTorch.

Source: Blaizzy/mlx-vlm#1241.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers
from .surroundings import (
    WIDTH,
)


class Torch(TorchImageModel):
    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, 2, 4, WIDTH))
        del self.cls_token, self.pos_embed

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.grid.permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(grid, (ROWS, COLUMNS), mode="bicubic", align_corners=False)
        return x + resized.flatten(2).transpose(1, 2)


class Port(PortImageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.grid = nnx.Param(jax.random.normal(jax.random.key(0), (1, 2, 4, WIDTH)))
        del self.cls_token, self.pos_embed

    def cubic(self, length: int, size: int) -> jax.Array:
        a = -0.5 if self.wrong else -0.75
        at = (jnp.arange(size) + 0.5) * (length / size) - 0.5
        reach = jnp.arange(-1, 3)
        d = jnp.abs(at[:, None] - jnp.floor(at)[:, None] - reach)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        index = jnp.clip(jnp.floor(at).astype(int)[:, None] + reach, 0, length - 1)
        return (jax.nn.one_hot(index, length, dtype=d.dtype) * jnp.where(d <= 1, near, far)[..., None]).sum(1)

    def tokens(self, x: jax.Array) -> jax.Array:
        rows, columns = self.cubic(2, ROWS), self.cubic(4, COLUMNS)
        resized = jnp.einsum("ri,cj,bijw->brcw", rows, columns, self.grid[...])
        return x + resized.reshape(1, -1, WIDTH).astype(x.dtype)


BUG = Bug(
    source="Blaizzy/mlx-vlm#1241",
    what="resizes with the cubic kernel of -0.5; PyTorch's has -0.75",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer="(the network)",
    named=r"bicubic",
    kind="vision",
    trap_added=True,
)
