"""The port reads the pixels of a patch column by column.

Source: NVIDIA/flashdreams#284.
"""

from __future__ import annotations

import jax

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers


class Port(PortImageModel):
    def patches(self, images: jax.Array) -> jax.Array:
        pixels = super().patches(images)
        cut = pixels.reshape(*pixels.shape[:2], PATCH, PATCH, 3)
        return cut.swapaxes(2, 3).reshape(pixels.shape) if self.wrong else pixels


BUG = Bug(
    source="NVIDIA/flashdreams#284",
    what="reads the pixels of a patch column by column",
    torch=TorchImageModel,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer=("patch_embed", "(the network)"),
    named=r"patch-columns|columns",
    kind="vision",
)
