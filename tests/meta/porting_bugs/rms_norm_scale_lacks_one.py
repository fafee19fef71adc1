"""The port multiplies by Gemma's scale; PyTorch's model multiplies by one plus the scale.

Source: utensils/mold#1078.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import VOCABULARY, WIDTH, PortLanguageModel, PortNormed, TorchLanguageModel, TorchNormed


class TorchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.weight[...] if self.wrong else 1 + self.weight[...]
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


BUG = Bug(
    source="utensils/mold#1078",
    what="multiplies by the scale; PyTorch's model multiplies by 1 + scale",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"norm-scale-one-lost|1 \+ scale",
    kind="norm",
)
