"""The port's RMSNorm subtracts the mean, as a LayerNorm does.

Source: ggml-org/llama.cpp#173.
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
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True) if self.wrong else x
        return self.weight[...] * (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))


BUG = Bug(
    source="ggml-org/llama.cpp#173",
    what="subtracts the mean; PyTorch's model does not",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"rms-norm-subtracts-mean|mean is subtracted",
    kind="norm",
)
