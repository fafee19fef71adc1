"""Haiku Geometric's graph convolution has a bias that it never adds.

Source: alexOarga/haiku-geometric#5.
"""

from __future__ import annotations

from . import Bug
from .gcn_degree_plus_one import Port, Torch, inputs

BUG = Bug(
    source="alexOarga/haiku-geometric#5",
    what="The bias of the convolution is never added.",
    torch=Torch,
    port=lambda wrong: Port(bias_unused=wrong),
    inputs=inputs,
    layer="conv1",
    named=r"bias",
    kind="configuration",
    blind=True,
)
