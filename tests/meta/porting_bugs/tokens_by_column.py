"""The port reads the patches of an image column by column.

Source: MIC-DKFZ/dynamic-network-architectures#13.
"""

from __future__ import annotations

import jax

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers


class Port(PortImageModel):
    def patches(self, images: jax.Array) -> jax.Array:
        patches = super().patches(images)
        grid = patches.reshape(-1, ROWS, COLUMNS, patches.shape[-1])
        return grid.swapaxes(1, 2).reshape(patches.shape) if self.wrong else patches


BUG = Bug(
    source="MIC-DKFZ/dynamic-network-architectures#13",
    what="reads the patches column by column; PyTorch's model reads rows",
    torch=TorchImageModel,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer=("patch_embed", "(the network)"),
    named=r"tokens-by-column|column",
    kind="vision",
)
