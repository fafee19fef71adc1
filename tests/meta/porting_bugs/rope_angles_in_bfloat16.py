"""The port computes angles in bfloat16, in which positions above 256 are not exact.

Source: EleutherAI/gpt-neox#1003.
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
        return (torch.arange(length)[:, None] + 250) * 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = self.angles(q.shape[2])
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def angles(self, length: int) -> jax.Array:
        angles = (jnp.arange(length)[:, None] + 250) * 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        return jax.lax.reduce_precision(angles, 8, 7) if self.wrong else angles

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = self.angles(q.shape[1])
        return super().attend(port_rotated(q, angles), port_rotated(k, angles), v)


BUG = Bug(
    source="EleutherAI/gpt-neox#1003",
    what="rounds the angles to bfloat16",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-\w+-bfloat16|bfloat16",
    kind="rotary",
)
