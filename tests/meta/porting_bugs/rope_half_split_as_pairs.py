"""The port rotates neighbours, PyTorch's model the halves of a head.

Source: huggingface/transformers#39687.
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
        angles = torch.arange(q.shape[2])[:, None] * 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def rotate(self, x: jax.Array) -> jax.Array:
        angles = jnp.arange(x.shape[1])[:, None] * 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        if not self.wrong:
            return port_rotated(x, angles)
        turn = jax.lax.complex(jnp.cos(angles), jnp.sin(angles))[:, None]
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turned = jax.lax.complex(pairs[..., 0].astype(turn.real.dtype), pairs[..., 1].astype(turn.real.dtype)) * turn
        return jnp.stack((turned.real, turned.imag), -1).reshape(x.shape).astype(x.dtype)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return super().attend(self.rotate(q), self.rotate(k), v)


BUG = Bug(
    source="huggingface/transformers#39687",
    what="rotates neighbours; PyTorch's model rotates features half the depth apart",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-is-interleaved|neighbouring features",
    kind="rotary",
)
