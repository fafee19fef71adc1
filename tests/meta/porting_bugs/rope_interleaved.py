"""The port's rotary embedding rotates the two halves of a head; PyTorch's model rotates neighbours.

Source: EleutherAI/gpt-neox#834. Checkpoints for one form were run with the other.
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
)


class Torch(TorchAttention):
    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        frequencies = 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)
        angles = (torch.arange(x.shape[2])[:, None] * frequencies).to(x.dtype)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1).flatten(-2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return super().attend(self.rotate(q), self.rotate(k), v)


class Port(PortAttention):
    def rotate(self, x: jax.Array) -> jax.Array:
        frequencies = 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        angles = jnp.arange(x.shape[1])[:, None] * frequencies
        if self.wrong:
            return port_rotated(x, angles)
        cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return super().attend(self.rotate(q), self.rotate(k), v)


BUG = Bug(
    source="EleutherAI/gpt-neox#834",
    what="rotates features half the depth apart; PyTorch's model rotates neighbours",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-is-half-split|half of the depth apart",
    kind="rotary",
)
