"""The port's MLP has Flax's default GELU, the tanh approximation; PyTorch's model has the exact one.

Source: clementpoiret/Equimo@3b2327a.
"""

from __future__ import annotations

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import VOCABULARY, WIDTH, LinenLanguageModel, TorchLanguageModel


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Dense(2 * WIDTH, name="fc1")(x)
        x = jax.nn.gelu(x) if self.wrong else jax.nn.gelu(x, approximate=False)
        return linen.Dense(WIDTH, name="fc2")(x)


BUG = Bug(
    source="clementpoiret/Equimo@3b2327a",
    what="computes GELU's tanh approximation; PyTorch's model computes the exact GELU",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: LinenLanguageModel("mlp", lambda name: Port(wrong, name=name)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"gelu",
    kind="gated unit",
)
