"""MLX's post-norm decoder layer calls its first norm again where its second belongs.

Source: ml-explore/mlx#1636.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

WIDTH, HEADS, HIDDEN = 16, 4, 32


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, memory)
        return x


class DecoderLayer(nnx.Module):
    def __init__(self, norm_reused: bool, query_unnormed: bool, rngs: nnx.Rngs) -> None:
        self.norm_reused, self.query_unnormed = norm_reused, query_unnormed
        self.self_attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.multihead_attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.linear1, self.linear2 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm3 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        y = self.self_attn(x)
        x = self.norm1(x + y)
        y = self.multihead_attn(y if self.query_unnormed else x, memory)
        x = (self.norm1 if self.norm_reused else self.norm2)(x + y)
        return self.norm3(x + self.linear2(nnx.relu(self.linear1(x))))


class Port(nnx.Module):
    def __init__(self, norm_reused: bool = False, query_unnormed: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([DecoderLayer(norm_reused, query_unnormed, rngs) for _ in range(2)])

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x, memory)
        return x


BUG = Bug(
    source="ml-explore/mlx#1636",
    what="The norm behind the cross-attention is the self-attention's; its own is never called.",
    torch=Torch,
    port=lambda wrong: Port(norm_reused=wrong),
    inputs=lambda: (numbers(2, 7, WIDTH), numbers(2, 5, WIDTH, seed=1)),
    layer=("layers.0.norm2", "layers.0.norm1"),
    named=r"(an)?other (layer|norm)|twice|again|reused?|shared|(not|never|isn't) called|norm1.*norm2|norm2.*norm1",
    kind="norm",
    blind=True,
    trap_added=True,
)
