"""The port normalises queries and keys behind the rotation; PyTorch's model in front of it.

Source: karpathy/nanochat#743. With a scale for each feature the order matters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
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
    port_rotated,
    torch_rotated,
)


class Torch(TorchAttention):
    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.RMSNorm(DEPTH, eps=1e-6), nn.RMSNorm(DEPTH, eps=1e-6)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(q.shape[2])[:, None] * 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)
        q, k = torch_rotated(self.q_norm(q), angles), torch_rotated(self.k_norm(k), angles)
        return super().attend(q, k, v)


class Port(PortAttention):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        super().__init__(rngs, wrong)
        self.q_norm, self.k_norm = nnx.RMSNorm(DEPTH, rngs=rngs), nnx.RMSNorm(DEPTH, rngs=rngs)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = jnp.arange(q.shape[1])[:, None] * 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        if self.wrong:
            q, k = self.q_norm(port_rotated(q, angles)), self.k_norm(port_rotated(k, angles))
        else:
            q, k = port_rotated(self.q_norm(q), angles), port_rotated(self.k_norm(k), angles)
        return super().attend(q, k, v)


BUG = Bug(
    source="karpathy/nanochat#743",
    what="normalises queries and keys behind the rotation; PyTorch's model in front of it",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.self_attn", "layers.0.self_attn.q_norm", "layers.0.self_attn.k_norm"),
    named=r"rotat.*(norm|order|before|behind|first)|norm.*rotat",
    kind="attention",
    trap_added=True,
)
