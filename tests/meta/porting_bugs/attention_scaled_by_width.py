"""The port divides the scores by the root of the model's width; PyTorch's model by that of a head's depth.

Source: FrancescoSaverioZuppichini/ViT#1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .surroundings import (
    DEPTH,
    VOCABULARY,
    WIDTH,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
    port_causal,
    torch_causal,
)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(DEPTH)
        scores = scores.masked_fill(~torch_causal(q.shape[2]), float("-inf"))
        return scores.softmax(-1) @ v


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH if self.wrong else DEPTH)
        weights = jax.nn.softmax(jnp.where(port_causal(q.shape[1]), scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


BUG = Bug(
    source="FrancescoSaverioZuppichini/ViT#1",
    what="divides the scores by the root of the width; PyTorch's model divides by the root of a head's depth",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-scale|root of the model's width",
    kind="attention",
)
