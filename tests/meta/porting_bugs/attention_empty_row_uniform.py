"""A query that sees no key gets the mean of all values in the port, and zero in PyTorch's model.

Source: pytorch/pytorch#103749.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import padding, tokens
from .surroundings import (
    DEPTH,
    VOCABULARY,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
    port_causal,
    torch_causal,
)

KEYS = padding(10, 10, 6)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = torch.from_numpy(KEYS)[:, None, None]
        scores = q @ k.transpose(-1, -2) * DEPTH**-0.5
        mask = keys & torch_causal(q.shape[2]).flip(-2)
        mask = mask & (torch.arange(q.shape[2])[:, None] != 3)
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys = jnp.asarray(KEYS)[:, None, None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        mask = keys & port_causal(q.shape[1])[::-1] & (jnp.arange(q.shape[1])[:, None] != 3)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        weights = weights if self.wrong else jnp.where(mask.any(-1, keepdims=True), weights, 0.0)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="pytorch/pytorch#103749",
    what="gives a query without keys the mean of all values; PyTorch's model gives zero",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-empty-row-uniform|without keys",
    kind="attention",
    trap_added=True,
)
