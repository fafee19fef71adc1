"""KerasHub's VGG has no activation behind the hidden layers of its head.

Source: keras-team/keras-hub@41ab2595c.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

CHANNELS, HIDDEN, CLASSES = 8, 20, 5


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(CHANNELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.wrong = wrong
        self.conv1 = nnx.Conv(3, CHANNELS, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(CHANNELS, CHANNELS, (3, 3), padding=1, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(CHANNELS, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.predictions = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def hidden(self, x: jax.Array) -> jax.Array:
        return x if self.wrong else nnx.relu(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        x = self.hidden(self.fc1(x.mean((1, 2))))
        return self.predictions(self.hidden(self.fc2(x)))


BUG = Bug(
    source="keras-team/keras-hub@41ab2595c",
    what="The hidden layers of the head have no ReLU behind them.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 3, 16, 12),),
    layer="classifier.1",
    named=r"relu|rectif|activation.*(missing|lack)|(missing|lack|without).*activation",
    kind="vision",
    blind=True,
)
