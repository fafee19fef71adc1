"""Faster Trajectory Transformer adds the attention to the normalized input, not to the input.

Source: Howuhh/faster-trajectory-transformer#3.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, WIDTH, FlaxAttention, TorchAttention


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = TorchAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class FlaxTransformerBlock(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.attention = FlaxAttention()
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.norm1(x)
        x = (normed if self.wrong else x) + self.attention(normed)
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.tok_emb = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([FlaxTransformerBlock(wrong, rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tok_emb(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BUG = Bug(
    source="Howuhh/faster-trajectory-transformer#3",
    what="The residual of the attention is the norm's output instead of the block's input.",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer="blocks.0",
    named=r"residual|skip|shortcut",
    kind="norm",
    blind=True,
    trap_added=True,
)
