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
from .surroundings import (
    VOCABULARY,
    WIDTH,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)


class TorchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = TorchNorm(), TorchMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x))


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.weight[...] if self.wrong else 1 + self.weight[...]
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.norm, self.mlp = PortNorm(wrong), PortMlp(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(self.norm(x))


BUG = Bug(
    source="utensils/mold#1078",
    what="multiplies by the scale; PyTorch's model multiplies by 1 + scale",
    torch=lambda: TorchLanguageModel("block", Torch),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"norm-scale-one-lost|1 \+ scale",
    kind="norm",
)
