"""The port's GRU multiplies the state by the reset gate in front of the product; PyTorch behind it.

Source: tracel-ai/burn#2704.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers


class TorchCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Linear(14, 16), nn.Linear(6, 8)
        self.recurrent = nn.Linear(8, 8)

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        r, z = self.gates(torch.cat((x, h), -1)).sigmoid().chunk(2, -1)
        n = torch.tanh(self.candidate(x) + r * self.recurrent(h))
        return (1 - z) * n + z * h


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = TorchCell(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(len(x), 8, dtype=x.dtype)
        for step in x.unbind(1):
            h = self.cell(h, step)
        return self.fc(h)


class PortCell(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.gates, self.candidate = nnx.Linear(14, 16, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)
        self.recurrent = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        r, z = jnp.split(jax.nn.sigmoid(self.gates(jnp.concatenate((x, h), -1))), 2, -1)
        n = jnp.tanh(self.candidate(x) + (self.recurrent(r * h) if self.wrong else r * self.recurrent(h)))
        return (1 - z) * n + z * h


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.cell, self.fc = PortCell(wrong, rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.zeros((len(x), 8), x.dtype)
        for step in range(x.shape[1]):
            h = self.cell(h, x[:, step])
        return self.fc(h)


BUG = Bug(
    source="tracel-ai/burn#2704",
    what="multiplies by the reset gate in front of the product; PyTorch's cell behind it",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 4, 6),),
    layer=("cell", "cell.recurrent"),
    named=r"reset gate|recurrent.*(before|in front|behind|after)",
    kind="recurrent",
    trap_added=True,
)
