"""The port's RMSNorm has the epsilon 1e-6; the configuration says 1e-5.

Source: keras-team/keras-hub@81de50adc.
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
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        epsilon = 1e-6 if self.wrong else 1e-5
        return self.weight[...] * (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon))


BUG = Bug(
    source="keras-team/keras-hub@81de50adc",
    what="adds the epsilon 1e-6; PyTorch's model adds 1e-5",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"epsilon",
    kind="norm",
)
