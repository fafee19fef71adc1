"""mlx-embeddings adds the ones and zeros of a padding mask to the scores.

Source: Blaizzy/mlx-embeddings@686ee6335f.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import padding, tokens
from .skeletons import VOCABULARY, WIDTH, FlaxAttention, FlaxRMSNorm, TorchAttention, TorchRMSNorm


class TorchMaskedAttention(TorchAttention):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q, k = self.positioned(q), self.positioned(k)
        k, v = (array.repeat_interleave(self.heads // self.groups, 1) for array in (k, v))
        scores = self.scored(q, k).masked_fill(mask[:, None, None] == 0, torch.finfo(x.dtype).min)
        return self.o_proj(self.merged(scores.softmax(-1) @ v))


class Torch(nn.Module):
    """Embeds texts: attention in both directions, and the mean of what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList(TorchRMSNorm() for _ in range(2))
        self.layers = nn.ModuleList(TorchMaskedAttention(i) for i in range(2))
        self.dense = nn.Linear(WIDTH, 8, bias=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x), mask)
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.dense(pooled)


class FlaxMaskedAttention(FlaxAttention):
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q, k = self.positioned(q), self.positioned(k)
        k, v = (jnp.repeat(array, self.heads // self.groups, 1) for array in (k, v))
        bias = mask.astype(x.dtype) if self.wrong else jnp.where(mask, 0.0, jnp.finfo(x.dtype).min)
        scores = self.scored(q, k) + bias[:, None, None]
        return self.o_proj(self.merged(jax.nn.softmax(scores, -1) @ v))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.norms = nnx.List([FlaxRMSNorm() for _ in range(2)])
        self.layers = nnx.List([FlaxMaskedAttention(i, wrong) for i in range(2)])
        self.dense = nnx.Linear(WIDTH, 8, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.embed_tokens(tokens)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x), mask)
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return self.dense(pooled)


BUG = Bug(
    source="Blaizzy/mlx-embeddings@686ee6335f",
    what="The padding mask is added to the scores as ones and zeros, so padding is hardly hidden.",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY), padding(10, 10, 6).astype(int)),
    layer="layers.0",
    named=r"mask|padding",
    kind="attention",
    blind=True,
)
