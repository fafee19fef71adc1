"""The port rotates queries by the angles of the next position.

Source: fla-org/flash-linear-attention#766. An offset of one in the positions.
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
        return torch.arange(length)[:, None] * 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = self.angles(q.shape[2])
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def angles(self, length: int) -> jax.Array:
        return jnp.arange(length)[:, None] * 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = self.angles(q.shape[1] + 1)
        first = int(self.wrong)
        return super().attend(port_rotated(q, angles[first:][: q.shape[1]]), port_rotated(k, angles[:-1]), v)


BUG = Bug(
    source="fla-org/flash-linear-attention#766",
    what="rotates queries as if they stood one position later; PyTorch's model rotates queries and keys alike",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-position-one-later|positions? (are|is) one more|one (position )?later",
    kind="rotary",
)
