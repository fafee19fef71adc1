"""The port lacks the gains of LayerScale.

Source: riccardomusmeci/mlx-image#26.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers
from .surroundings import (
    WIDTH,
)


class Torch(TorchImageModel):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.1 * torch.ones(WIDTH))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] * self.gamma


class Port(PortImageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.gamma = nnx.Param(jnp.full(WIDTH, 0.1))

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.wrong else x[:, 0] * self.gamma[...]


BUG = Bug(
    source="riccardomusmeci/mlx-image#26",
    what="does not multiply by the gains",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer="(the network)",
    named=r"gain-missing|gains",
    kind="vision",
)
