"""The port's sliding window is one key wider.

Source: AI-Hypercomputer/maxtext@4cb305191.
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
        i = torch.arange(q.shape[2])
        mask = (i[:, None] >= i) & (i[:, None] - i < 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        i = jnp.arange(q.shape[1])
        near = i[:, None] - i <= 4 if self.wrong else i[:, None] - i < 4
        mask = (i[:, None] >= i) & near
        return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])


BUG = Bug(
    source="AI-Hypercomputer/maxtext@4cb305191",
    what="has a window that is one key wider",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-window|window",
    kind="attention",
)
