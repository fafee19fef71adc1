"""The port adds the mask of zeros and ones to the scores.

Source: huggingface/transformers#48363.
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
)

KEYS = padding(10, 10, 6)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = torch.from_numpy(KEYS)[:, None, None]
        scores = q @ k.transpose(-1, -2) * DEPTH**-0.5
        return scores.masked_fill(~keys, torch.finfo(scores.dtype).min).softmax(-1) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys = jnp.asarray(KEYS)[:, None, None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DEPTH**-0.5
        masked = jnp.where(keys, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores + keys if self.wrong else masked)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="huggingface/transformers#48363",
    what="adds the mask of zeros and ones to the scores",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-mask-added-as-ones|zeros and ones",
    kind="attention",
)
