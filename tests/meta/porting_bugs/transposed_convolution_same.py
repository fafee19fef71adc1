"""The port pads a transposed convolution by 'SAME'; PyTorch's padding of one cuts the other side.

Source: keras-team/keras-core#774. The frameworks' paddings of transposed convolutions mean different things.
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
        self.encode = nn.Conv2d(3, 6, 3, padding=1)
        self.decode = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).relu())


class Port(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.Conv(6, (3, 3), padding=1, name="encode")(x))
        pads: Any = "SAME" if self.wrong else ((1, 2), (1, 2))
        return linen.ConvTranspose(4, (3, 3), (2, 2), pads, transpose_kernel=True, name="decode")(x)


BUG = Bug(
    source="keras-team/keras-core#774",
    what="pads by 'SAME', which cuts another side than PyTorch's padding",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer="decode",
    named=r"conv-transpose-\w+|SAME",
    kind="convolution",
)
