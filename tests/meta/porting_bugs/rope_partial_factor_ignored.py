"""The port ignores partial_rotary_factor and rotates all features of a head.

Source: AI-Hypercomputer/maxtext@942563445.
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
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(q.shape[2])[:, None] * 1e4 ** -(torch.arange(0, 4, 2) / 4)
        q, k = (torch.cat((torch_rotated(x[..., :4], angles), x[..., 4:]), -1) for x in (q, k))
        return super().attend(q, k, v)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        size = DEPTH if self.wrong else 4
        angles = jnp.arange(q.shape[1])[:, None] * 1e4 ** -(jnp.arange(0, size, 2) / size)
        q, k = (jnp.concatenate((port_rotated(x[..., :size], angles), x[..., size:]), -1) for x in (q, k))
        return super().attend(q, k, v)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@942563445",
    what="rotates all features; PyTorch's model rotates half of them",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-part-ignored|all features are rotated",
    kind="rotary",
)
