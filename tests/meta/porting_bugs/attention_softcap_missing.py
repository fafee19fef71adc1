"""The port does not cap attention scores, as Gemma 2 does.

Source: AI-Hypercomputer/maxtext@fecf96adb.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
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


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(-1, -2) * DEPTH**-0.5
        scores = torch.tanh(scores / 0.5) * 0.5
        scores = scores.masked_fill(~torch_causal(q.shape[2]), float("-inf"))
        return scores.softmax(-1) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        scores = scores if self.wrong else jnp.tanh(scores / 0.5) * 0.5
        weights = jax.nn.softmax(jnp.where(port_causal(q.shape[1]), scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@fecf96adb",
    what="does not cap the scores",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-cap|not capped|tanh",
    kind="attention",
)
