"""Diffusers' Flax VAE has 32 groups in its residual blocks, whatever the configuration says.

Source: huggingface/diffusers#621.
"""

from __future__ import annotations

from . import Bug
from .downsample_one_side import GROUPS, Port, Torch
from .inputs import numbers

BUG = Bug(
    source="huggingface/diffusers#621",
    what="The group norms of the residual blocks have 32 groups instead of the configured eight.",
    torch=Torch,
    port=lambda wrong: Port(groups=32 if wrong else GROUPS),
    inputs=lambda: (numbers(2, 3, 12, 8),),
    layer="down.0.block.norm1",
    named=r"(number of|wrong|how many|num_|other) ?groups|groups",
    kind="configuration",
    blind=True,
)
