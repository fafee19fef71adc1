"""The port's max-pool pads by 'SAME', behind the image alone.

Source: google-research/simclr#26.
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
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.maxpool, self.fc = nn.MaxPool2d(3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.maxpool(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.Conv(8, (3, 3), padding=1, name="conv1")(x)
        x = linen.relu(linen.BatchNorm(not train, momentum=0.9, name="bn1")(x))
        pads: Any = "SAME" if self.wrong else ((1, 1), (1, 1))
        x = linen.max_pool(x, (3, 3), (2, 2), pads)
        return linen.Dense(5, name="fc")(x.mean((1, 2)))


BUG = Bug(
    source="google-research/simclr#26",
    what="pads by 'SAME'; PyTorch pads both sides alike",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer=("maxpool", "(the network)"),
    named=r"max-pool-same|SAME",
    kind="convolution",
    options={"accept": ("bn-running-var",)},
)
