"""The port's AdamW decays norms and biases; PyTorch's leaves them out.

Source: salesforce/jaxformer#28.
"""

from __future__ import annotations

from typing import Any

import jax
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


def adamw(params: Any) -> torch.optim.Optimizer:
    params = list(params)
    matrices, vectors = ([p for p in params if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


BUG = Bug(
    source="salesforce/jaxformer#28",
    what="decays all parameters; PyTorch's training leaves norms and biases out",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 4, 6),),
    layer=("(the training)", "(the network)", "(training)", "(the optimizer)"),
    named=r"decay",
    kind="training",
    trap_added=True,
    options={"optimizer": adamw, "tx": optax.adamw(1e-2, weight_decay=0.1, mask=matrices)},
    mistaken={"tx": optax.adamw(1e-2, weight_decay=0.1)},
)
