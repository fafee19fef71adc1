"""The port's warm-up is one step behind.

Source: NVIDIA-NeMo/Megatron-Bridge#5399.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers


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


def warming(params: Any) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(params, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))


def schedule(first: int) -> optax.Schedule:
    return lambda step: 0.1 * jnp.minimum(1.0, (step + first) / 4)


BUG = Bug(
    source="NVIDIA-NeMo/Megatron-Bridge#5399",
    what="trains its first step with the rate zero; PyTorch's training begins one step further",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 4, 6),),
    layer=("(the training)", "(the network)", "(training)", "(the optimizer)"),
    named=r"schedule-late|one step behind",
    kind="training",
    trap_added=True,
    options={"optimizer": warming, "tx": optax.sgd(schedule(1))},
    mistaken={"tx": optax.sgd(schedule(0))},
)
