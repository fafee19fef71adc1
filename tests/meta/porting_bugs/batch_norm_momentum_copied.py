"""The port copies PyTorch's BatchNorm momentum, which Flax takes for the weight of the old statistics.

Source: huggingface/transformers#19454.
"""

from __future__ import annotations

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=0.1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.Conv(8, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        x = linen.relu(linen.BatchNorm(not train, momentum=0.1 if self.wrong else 0.9, name="bn1")(x))
        return linen.Dense(5, name="fc")(x.mean((1, 2)))


BUG = Bug(
    source="huggingface/transformers#19454",
    what="keeps 0.1 of the old statistics; PyTorch keeps 0.9 of them",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer="bn1",
    named=r"bn-momentum-copied|momentum",
    kind="batch norm",
    options={"accept": ("bn-running-var",)},
)
