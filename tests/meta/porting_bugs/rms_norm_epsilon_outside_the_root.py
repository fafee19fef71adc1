"""The port adds epsilon to the root; PyTorch's model adds it to the mean square.

Source: tile-ai/tilelang#1243.
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
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        square = jnp.square(x).mean(-1, keepdims=True)
        root = jnp.sqrt(square) + 1e-5 if self.wrong else jnp.sqrt(square + 1e-5)
        return self.weight[...] * x / root


BUG = Bug(
    source="tile-ai/tilelang#1243",
    what="adds epsilon to the root; PyTorch's model adds it to the mean square",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"norm-epsilon-outside|epsilon is added to the root",
    kind="norm",
    trap_added=True,
)
