"""MLX's Stable Diffusion gives the group norm of a spatial transformer the framework's epsilon.

Source: ml-explore/mlx-examples#1434.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, GROUPS, HEADS = 16, 4, 2


class TorchSelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3))
        self.to_out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class BasicTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(CHANNELS), TorchSelfAttention()
        self.norm3, self.ff = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + nn.functional.silu(self.ff(self.norm3(x)))


class Transformer2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, CHANNELS, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            y = block(y)
        return x + self.proj_out(y).transpose(1, 2).unflatten(2, x.shape[2:])


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.attentions = nn.ModuleList(Transformer2D() for _ in range(2))
        self.conv_norm_out = nn.GroupNorm(GROUPS, CHANNELS, eps=1e-5)
        self.conv_out = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for attention in self.attentions:
            x = attention(x)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(x)))


class FlaxSelfAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.to_q, self.to_k, self.to_v = (nnx.Linear(CHANNELS, CHANNELS, use_bias=False, rngs=rngs) for _ in range(3))
        self.to_out = nnx.Linear(CHANNELS, CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (layer(x).reshape(*x.shape[:2], HEADS, -1) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class FlaxBasicTransformerBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(CHANNELS, epsilon=1e-5, rngs=rngs)
        self.attn1 = FlaxSelfAttention(rngs)
        self.norm3 = nnx.LayerNorm(CHANNELS, epsilon=1e-5, rngs=rngs)
        self.ff = nnx.Linear(CHANNELS, CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn1(self.norm1(x))
        return x + nnx.silu(self.ff(self.norm3(x)))


class FlaxTransformer2D(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.norm = nnx.GroupNorm(CHANNELS, GROUPS, epsilon=1e-5 if wrong else 1e-6, rngs=rngs)
        self.proj_in, self.proj_out = (nnx.Linear(CHANNELS, CHANNELS, rngs=rngs) for _ in range(2))
        self.transformer_blocks = nnx.List([FlaxBasicTransformerBlock(rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.proj_in(self.norm(x).reshape(x.shape[0], -1, CHANNELS))
        for block in self.transformer_blocks:
            y = block(y)
        return x + self.proj_out(y).reshape(x.shape)


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.conv_in = nnx.Conv(4, CHANNELS, (3, 3), padding=1, rngs=rngs)
        self.attentions = nnx.List([FlaxTransformer2D(wrong, rngs) for _ in range(2)])
        self.conv_norm_out = nnx.GroupNorm(CHANNELS, GROUPS, epsilon=1e-5, rngs=rngs)
        self.conv_out = nnx.Conv(CHANNELS, 4, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for attention in self.attentions:
            x = attention(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


BUG = Bug(
    source="ml-explore/mlx-examples#1434",
    what="The group norm in front of the spatial transformer has epsilon 1e-5 instead of 1e-6.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 4, 6, 5),),
    layer="attentions.0.norm",
    named=r"eps",
    kind="norm",
    blind=True,
)
