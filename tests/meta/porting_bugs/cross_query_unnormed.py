"""MLX's post-norm decoder layer asks the memory with the self-attention's output instead of its norm's.

Source: ml-explore/mlx@a8776b7bb.
"""

from __future__ import annotations

from . import Bug
from .decoder_norm_reused import WIDTH, Port, Torch
from .inputs import numbers

BUG = Bug(
    source="ml-explore/mlx@a8776b7bb",
    what="The queries of the cross-attention come from the self-attention's output, without residual and norm.",
    torch=Torch,
    port=lambda wrong: Port(query_unnormed=wrong),
    inputs=lambda: (numbers(2, 7, WIDTH), numbers(2, 5, WIDTH, seed=1)),
    layer="layers.0.multihead_attn",
    named=r"quer|without (the )?(residual|norm)|(before|skips?|bypass\w*) (the )?norm|input of",
    kind="attention",
    blind=True,
    trap_added=True,
)
