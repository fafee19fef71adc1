"""The port caps the scores behind the mask, so that masked scores are finite.

Source: AI-Hypercomputer/maxtext@a56309f6f.
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
        scores = torch.tanh(scores / 5.0) * 5.0
        scores = scores.masked_fill(~torch_causal(q.shape[2]), torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        scores = scores if self.wrong else jnp.tanh(scores / 5.0) * 5.0
        scores = jnp.where(port_causal(q.shape[1]), scores, jnp.finfo(scores.dtype).min)
        scores = jnp.tanh(scores / 5.0) * 5.0 if self.wrong else scores
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@a56309f6f",
    what="caps the masked scores, too, so that they take part in the softmax",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-cap-behind-mask|cap .*behind",
    kind="attention",
)
