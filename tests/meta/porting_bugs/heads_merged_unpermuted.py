"""Heads are reshaped together without exchanging the axes of heads and positions first.

Source: jsbaan/transformer-from-scratch#6.
"""

from __future__ import annotations

import jax

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchDecoder


class FlaxUnpermutedAttention(FlaxAttention):
    def merged(self, x: jax.Array) -> jax.Array:
        batch, _, length, _ = x.shape
        return x.reshape(batch, length, -1) if self.wrong else super().merged(x)


BUG = Bug(
    source="jsbaan/transformer-from-scratch#6",
    what="The outputs of the heads are reshaped to (batch, length, width) with heads still before positions.",
    torch=TorchDecoder,
    port=lambda wrong: FlaxDecoder(wrong, FlaxUnpermutedAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"transpos|permut|reshape|heads|axes",
    kind="attention",
    blind=True,
)
