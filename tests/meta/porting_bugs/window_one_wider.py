"""MaxText's sliding window lets a token see one token more than the model does.

Source: AI-Hypercomputer/maxtext@4cb305191.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

WINDOW = 4


class SlidingAttention(TorchAttention):
    def visible(self, length: int) -> torch.Tensor:
        at = torch.arange(length)
        distance = at[:, None] - at
        return (distance >= 0) & (distance < WINDOW)


class FlaxSlidingAttention(FlaxAttention):
    def visible(self, length: int) -> jax.Array:
        at = jnp.arange(length)
        distance = at[:, None] - at
        return (distance >= 0) & (distance < WINDOW + self.wrong)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@4cb305191",
    what="The local window holds one token more: it counts the token itself beside the window.",
    torch=lambda: TorchDecoder(SlidingAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxSlidingAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"window|mask",
    kind="attention",
    blind=True,
)
