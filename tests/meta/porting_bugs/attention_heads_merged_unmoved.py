"""The port merges heads without exchanging their axis with the length.

Source: jsbaan/transformer-from-scratch#6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from torch import nn

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
)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        weights = jax.nn.softmax(jnp.where(port_causal(q.shape[1]), scores, -jnp.inf))
        y = jnp.einsum("bhqk,bkhd->bhqd", weights, v)
        return y.reshape(q.shape) if self.wrong else y.transpose(0, 2, 1, 3)


BUG = Bug(
    source="jsbaan/transformer-from-scratch#6",
    what="merges the axes as they stand; PyTorch's model exchanges heads and length first",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"heads-merged-unmoved|order in which they stand|merged",
    kind="attention",
)
