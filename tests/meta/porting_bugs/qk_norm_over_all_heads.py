"""The port normalises queries and keys over all heads at once; PyTorch's model normalises each head.

Source: EleutherAI/gpt-neox#1367.
"""

from __future__ import annotations

from typing import Any

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
)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = (nn.functional.layer_norm(x, (DEPTH,), eps=1e-5) for x in (q, k))
        return super().attend(q, k, v)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        axes = (-2, -1) if self.wrong else -1
        q, k = (self.normalised(x, axes) for x in (q, k))
        return super().attend(q, k, v)

    def normalised(self, x: jax.Array, axes: Any) -> jax.Array:
        deviation = jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return (x - x.mean(axes, keepdims=True)) / deviation


BUG = Bug(
    source="EleutherAI/gpt-neox#1367",
    what="normalises over all heads at once; PyTorch's model normalises each head",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"norm-over-all-heads|all heads at once",
    kind="attention",
    trap_added=True,
)
