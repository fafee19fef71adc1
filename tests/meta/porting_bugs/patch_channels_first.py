"""The port puts a patch's channels in front of its pixels.

Source: cloneofsimo/minRF#6.
"""

from __future__ import annotations

import jax

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers


class Port(PortImageModel):
    def patches(self, images: jax.Array) -> jax.Array:
        pixels = super().patches(images)
        cut = pixels.reshape(*pixels.shape[:2], PATCH * PATCH, 3)
        return cut.swapaxes(2, 3).reshape(pixels.shape) if self.wrong else pixels


BUG = Bug(
    source="cloneofsimo/minRF#6",
    what="puts the channels in front of the pixels; PyTorch's model puts them behind",
    torch=TorchImageModel,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer=("patch_embed", "(the network)"),
    named=r"patch-channels|channels of a patch",
    kind="vision",
)
