"""The port leaves Flax's BatchNorm at its default momentum of 0.99; PyTorch's default is 0.1 of the new statistics.

Source: scverse/scvi-tools#2309.
"""

from __future__ import annotations

from typing import Any

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense1, self.norm1 = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.dense2, self.norm2 = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.dense3 = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.dense1(x)).relu()
        x = self.norm2(self.dense2(x)).relu()
        return self.dense3(x)


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        options: dict[str, Any] = {} if self.wrong else {"momentum": 0.9}
        x = linen.Dense(12, name="dense1")(x)
        x = linen.relu(linen.BatchNorm(not train, **options, name="norm1")(x))
        x = linen.Dense(12, name="dense2")(x)
        x = linen.relu(linen.BatchNorm(not train, **options, name="norm2")(x))
        return linen.Dense(5, name="dense3")(x)


BUG = Bug(
    source="scverse/scvi-tools#2309",
    what="keeps 0.99 of the old statistics, Flax's default; PyTorch keeps 0.9 of them",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(8, 6),),
    layer="norm1",
    named=r"bn-momentum-0.99|momentum",
    kind="batch norm",
    options={"accept": ("bn-running-var",)},
)
