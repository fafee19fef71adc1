"""MLX's post-norm encoder layer adds the second residual from before the first norm.

Source: ml-explore/mlx#1327.
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
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class EncoderLayer(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.self_attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.linear1, self.linear2 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm1(x + self.self_attn(x))
        residual = x if self.wrong else y
        return self.norm2(residual + self.linear2(nnx.relu(self.linear1(y))))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([EncoderLayer(wrong, rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


BUG = Bug(
    source="ml-explore/mlx#1327",
    what="The residual of the feed-forward part is the layer's input instead of the first norm's output.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 7, WIDTH),),
    layer="layers.0",
    named=r"residual|skip|shortcut",
    kind="norm",
    blind=True,
    trap_added=True,
)
