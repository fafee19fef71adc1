"""mlx-image's DINOv2 never multiplies its branches by the scales of the layers.

Source: riccardomusmeci/mlx-image#26.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

WIDTH, HEADS, PATCH, PATCHES = 16, 4, 4, 6


class TorchLayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class DinoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DinoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, eps=1e-6), DinoAttention(), TorchLayerScale()
        self.norm2, self.ls2 = nn.LayerNorm(WIDTH, eps=1e-6), TorchLayerScale()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES + 1, WIDTH))
        self.blocks = nn.ModuleList(DinoBlock() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class FlaxLayerScale(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong = wrong
        self.gamma = nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.wrong else x * self.gamma[...]


class FlaxDinoAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv, self.proj = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        return self.proj(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class FlaxDinoBlock(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-6, rngs=rngs)
        self.attn, self.ls1 = FlaxDinoAttention(rngs), FlaxLayerScale(wrong)
        self.norm2, self.ls2 = nnx.LayerNorm(WIDTH, epsilon=1e-6, rngs=rngs), FlaxLayerScale(wrong)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False)))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.patch_embed = nnx.Conv(3, WIDTH, (PATCH, PATCH), PATCH, padding="VALID", rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.pos_embed = nnx.Param(jnp.zeros((1, PATCHES + 1, WIDTH)))
        self.blocks = nnx.List([FlaxDinoBlock(wrong, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-6, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patch_embed(images)
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, WIDTH))
        x = jnp.concatenate([token, x.reshape(x.shape[0], -1, WIDTH)], 1) + self.pos_embed[...]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


BUG = Bug(
    source="riccardomusmeci/mlx-image#26",
    what="The scales of the layers are loaded and never multiply anything.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 3 * PATCH, 2 * PATCH),),
    layer="blocks.0.ls1",
    named=r"layer.?scale|gamma|unused|(never|not) used|no gradient|identity|without (its|the) scale",
    kind="vision",
    blind=True,
)
