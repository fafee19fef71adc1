"""The port pads a depthwise convolution of stride two by 'SAME'.

Source: google/flax#2993.
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
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.pointwise, self.fc = nn.Conv2d(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(self.stem(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.relu(linen.Conv(8, (3, 3), padding=1, name="stem")(x))
        pads = "SAME" if self.wrong else 1
        x = linen.Conv(8, (3, 3), 2, pads, feature_group_count=8, name="depthwise")(x)
        x = linen.relu(linen.Conv(12, (1, 1), name="pointwise")(linen.relu(x)))
        return linen.Dense(5, name="fc")(x.mean((1, 2)))


BUG = Bug(
    source="google/flax#2993",
    what="pads by 'SAME', which is another side for stride two",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer="depthwise",
    named=r"conv-padding-same|SAME",
    kind="convolution",
)
