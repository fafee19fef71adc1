"""The port multiplies positions by the linear scaling factor; PyTorch's model divides by it.

Source: keras-team/keras-hub@778ccd72f.
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
        return (torch.arange(length) / 4.0)[:, None] * 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = self.angles(q.shape[2])
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def angles(self, length: int) -> jax.Array:
        positions = jnp.arange(length) * 4.0 if self.wrong else jnp.arange(length) / 4.0
        return positions[:, None] * 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = self.angles(q.shape[1])
        return super().attend(port_rotated(q, angles), port_rotated(k, angles), v)


BUG = Bug(
    source="keras-team/keras-hub@778ccd72f",
    what="multiplies the positions by the scaling factor; PyTorch's model divides",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-scaling-inverse|positions are multiplied|scaling factor",
    kind="rotary",
)
