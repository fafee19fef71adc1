"""The port's LayerNorm has Flax's default epsilon; the configuration's is 1e-12.

Source: apple/axlearn#397.
"""

from __future__ import annotations

import jax
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    WIDTH,
    LinenLanguageModel,
    TorchLanguageModel,
    TorchMlp,
)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.LayerNorm = TorchMlp(), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.mlp(x) + x)


class PortDense(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(WIDTH, name="fc2")(jax.nn.silu(linen.Dense(2 * WIDTH, name="fc1")(x)))


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = PortDense(name="mlp")(x) + x
        return (linen.LayerNorm(name="LayerNorm") if self.wrong else linen.LayerNorm(1e-12, name="LayerNorm"))(x)


BUG = Bug(
    source="apple/axlearn#397",
    what="has the epsilon 1e-6, Flax's default; PyTorch's model has 1e-12",
    torch=lambda: TorchLanguageModel("output", Torch),
    port=lambda wrong: LinenLanguageModel("output", lambda name: Port(wrong, name=name)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.output.LayerNorm",
    named=r"epsilon",
    kind="configuration",
)
