"""The port's softmax goes over the queries.

Source: labmlai/annotated_deep_learning_paper_implementations#146.
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
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * DEPTH**-0.5
        scores = scores.masked_fill(~torch_causal(q.shape[2]), -1e9)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        weights = jax.nn.softmax(jnp.where(port_causal(q.shape[1]), scores, -1e9), axis=-2 if self.wrong else -1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="labmlai/annotated_deep_learning_paper_implementations#146",
    what="takes the softmax over the queries; PyTorch's model takes it over the keys",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-softmax-over-queries|over the queries|softmax-axis",
    kind="attention",
)
