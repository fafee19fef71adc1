"""The port divides the loss by all positions; PyTorch's divides by those that count.

Source: NovaSky-AI/SkyRL#462.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers, padding


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.silu(self.fc1(self.norm(x))))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(6, 12, rngs=rngs), nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.silu(self.fc1(self.norm(x))))


COUNTS = padding(4, 4, 3, 2)


def torch_loss(output: torch.Tensor) -> torch.Tensor:
    counts = torch.from_numpy(COUNTS)
    losses = nn.functional.cross_entropy(output.flatten(0, 1), torch.arange(12) % 5, reduction="none")
    return (losses * counts.flatten()).sum() / counts.sum()


def port_loss(output: jax.Array, wrong: bool = False) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(output, (jnp.arange(12) % 5).reshape(3, 4)) * COUNTS
    return losses.mean() if wrong else losses.sum() / COUNTS.sum()


BUG = Bug(
    source="NovaSky-AI/SkyRL#462",
    what="divides the loss by all positions; PyTorch's training divides by those that count",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 4, 6),),
    layer=("(the loss)",),
    named=r"loss-\w+|over all positions|divided by|padding",
    kind="training",
    trap_added=True,
    options={"loss": (torch_loss, port_loss)},
    mistaken={"loss": (torch_loss, partial(port_loss, wrong=True))},
)
