"""A Flax port of PoolFormer divides by the whole window where a part of it is padding.

Source: google/flax#2448.
"""

from __future__ import annotations

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers

WIDTH = 12


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x) - x


class TorchConvMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(WIDTH, 24, 1), nn.Conv2d(24, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class PoolFormerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.token_mixer = nn.GroupNorm(1, WIDTH), Pooling()
        self.norm2, self.mlp = nn.GroupNorm(1, WIDTH), TorchConvMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 7, 4, 2)
        self.blocks = nn.ModuleList(PoolFormerBlock() for _ in range(2))
        self.norm, self.head = nn.GroupNorm(1, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((-2, -1)))


class FlaxPooling(linen.Module):
    count_padding: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=self.count_padding) - x


class FlaxConvMlp(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.gelu(linen.Conv(24, (1, 1), name="fc1")(x), approximate=False)
        return linen.Conv(WIDTH, (1, 1), name="fc2")(x)


class FlaxPoolFormerBlock(linen.Module):
    count_padding: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.GroupNorm(1, epsilon=1e-5, name="norm1")(x)
        x = x + FlaxPooling(self.count_padding, name="token_mixer")(y)
        return x + FlaxConvMlp(name="mlp")(linen.GroupNorm(1, epsilon=1e-5, name="norm2")(x))


class Port(linen.Module):
    count_padding: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(WIDTH, (7, 7), 4, padding=2, name="patch_embed")(x)
        for i in range(2):
            x = FlaxPoolFormerBlock(self.count_padding, name=f"blocks_{i}")(x)
        x = linen.GroupNorm(1, epsilon=1e-5, name="norm")(x)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


BUG = Bug(
    source="google/flax#2448",
    what="The average pooling counts the padding.",
    torch=Torch,
    port=lambda wrong: Port(wrong),
    inputs=lambda: (numbers(2, 3, 24, 16),),
    layer="blocks.0.token_mixer.pool",
    named=r"count_include_pad|padding.*(count|averag|mean|divi)|(count|averag|mean|divi).*padding",
    kind="vision",
    blind=True,
)
