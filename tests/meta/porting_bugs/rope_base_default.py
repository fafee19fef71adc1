"""The port's rotary base is the usual 10,000; the checkpoint's is 500,000.

Source: AI-Hypercomputer/maxtext@4720c3e6f.
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
    port_rotated,
    torch_rotated,
)


class Torch(TorchAttention):
    def angles(self, length: int) -> torch.Tensor:
        return torch.arange(length)[:, None] * 500000.0 ** -(torch.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = self.angles(q.shape[2])
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def angles(self, length: int) -> jax.Array:
        base = 10000.0 if self.wrong else 500000.0
        return jnp.arange(length)[:, None] * base ** -(jnp.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = self.angles(q.shape[1])
        return super().attend(port_rotated(q, angles), port_rotated(k, angles), v)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@4720c3e6f",
    what="has the base 10,000; PyTorch's model has 500,000",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-base|base",
    kind="rotary",
)
