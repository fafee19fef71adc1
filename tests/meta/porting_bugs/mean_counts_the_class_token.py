"""The port's mean goes over all tokens; PyTorch's model leaves the class token out.

Source: lucidrains/vit-pytorch#226.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers


class Torch(TorchImageModel):
    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:].mean(1)


class Port(PortImageModel):
    def pool(self, x: jax.Array) -> jax.Array:
        return x.mean(1) if self.wrong else x[:, 1:].mean(1)


BUG = Bug(
    source="lucidrains/vit-pytorch#226",
    what="takes the mean over all tokens; PyTorch's model leaves the class token out",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer="(the network)",
    named=r"mean-counts-class-token|leaves the first",
    kind="vision",
)
