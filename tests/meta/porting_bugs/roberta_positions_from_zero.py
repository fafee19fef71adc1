"""Sentence Transformers counts RoBERTa's positions from zero; the model counts from behind the padding's row.

Source: huggingface/sentence-transformers#3879.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens

VOCABULARY, WIDTH, PADDING, LENGTH = 20, 16, 1, 14


class RobertaEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(LENGTH, WIDTH, padding_idx=PADDING)
        self.LayerNorm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        real = (tokens != PADDING).int()
        positions = real.cumsum(1) * real + PADDING
        return self.LayerNorm(self.word_embeddings(tokens) + self.position_embeddings(positions))


class RobertaLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.intermediate, self.output = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(x + self.output(nn.functional.gelu(self.intermediate(x))))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = RobertaEmbeddings()
        self.layer = nn.ModuleList(RobertaLayer() for _ in range(2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(tokens)
        for layer in self.layer:
            x = layer(x)
        return x


class FlaxRobertaEmbeddings(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.word_embeddings = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.position_embeddings = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        real = (tokens != PADDING).astype(jnp.int32)
        positions = jnp.cumsum(real, 1) * real + PADDING
        if self.wrong:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.LayerNorm(self.word_embeddings(tokens) + self.position_embeddings(positions))


class FlaxRobertaLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.intermediate, self.output = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.LayerNorm(x + self.output(nnx.gelu(self.intermediate(x), approximate=False)))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.embeddings = FlaxRobertaEmbeddings(wrong, rngs)
        self.layer = nnx.List([FlaxRobertaLayer(rngs) for _ in range(2)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embeddings(tokens)
        for layer in self.layer:
            x = layer(x)
        return x


BUG = Bug(
    source="huggingface/sentence-transformers#3879",
    what="Positions count from zero instead of from two, behind the row of the padding.",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY - 2) + 2,),
    layer="embeddings.position_embeddings",
    named=r"position|offset|indices|index|shift",
    kind="embedding",
    blind=True,
)
