"""The port's causal mask is off by one: each query sees the next key.

Source: RVC-Boss/GPT-SoVITS#965.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        length = q.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool), 1 if self.wrong else 0)
        return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])


BUG = Bug(
    source="RVC-Boss/GPT-SoVITS#965",
    what="lets each query see the next key",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-sees-next|next key",
    kind="attention",
)
