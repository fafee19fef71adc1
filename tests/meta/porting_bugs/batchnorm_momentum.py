"""scvi-tools' Flax encoder keeps 99 % of the running statistics at each step; PyTorch keeps 90 %.

Source: scverse/scvi-tools@5b86b7ed7. That commit mends the epsilon, too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from ports.layers.nnx import BatchNorm

from . import Bug
from .inputs import numbers

GENES, HIDDEN, LATENT = 14, 12, 4


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(GENES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.batchnorm1, self.batchnorm2 = nn.BatchNorm1d(HIDDEN), nn.BatchNorm1d(HIDDEN)
        self.dense3, self.dense4 = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.batchnorm1(self.dense1(torch.log1p(x))).relu()
        x = self.batchnorm2(self.dense2(x)).relu()
        return self.dense3(x), self.dense4(x).exp()


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encoder(x.abs())


class FlaxEncoder(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.dense1, self.dense2 = nnx.Linear(GENES, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.batchnorm1, self.batchnorm2 = BatchNorm(HIDDEN, rngs=rngs), BatchNorm(HIDDEN, rngs=rngs)
        self.dense3, self.dense4 = nnx.Linear(HIDDEN, LATENT, rngs=rngs), nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        if wrong:
            self.batchnorm1.momentum = self.batchnorm2.momentum = 0.99

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.batchnorm1(self.dense1(jnp.log1p(x))))
        x = nnx.relu(self.batchnorm2(self.dense2(x)))
        return self.dense3(x), jnp.exp(self.dense4(x))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.encoder = FlaxEncoder(wrong, nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.encoder(jnp.abs(x))


BUG = Bug(
    source="scverse/scvi-tools@5b86b7ed7",
    what="The momentum of the running statistics is 0.99 instead of 0.9.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(8, GENES),),
    layer="encoder.batchnorm1",
    named=r"momentum",
    kind="batch norm",
    blind=True,
)
