"""The port masks what comes later, and not the padding.

Source: AI-Hypercomputer/maxtext#878.
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
        mask = keys & torch_causal(q.shape[2])
        return scores.masked_fill(~mask, -1e9).softmax(-1) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys = jnp.asarray(KEYS)[:, None, None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        causal = port_causal(q.shape[1])
        mask = causal if self.wrong else keys & causal
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="AI-Hypercomputer/maxtext#878",
    what="does not mask padding",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-padding-seen|masks padding",
    kind="attention",
)
