"""Optimum's DeepSeek-V3 leaves YaRN's factor out of the scale of the scores.

Source: huggingface/optimum-intel#1877.
"""

from __future__ import annotations

import math

import jax
import torch

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

# 0.1 * mscale_all_dim * log(factor) + 1, for each of query and key
MSCALE = 0.1 * 1.0 * math.log(40.0) + 1.0


class YarnAttention(TorchAttention):
    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q @ k.transpose(-1, -2) * (self.size**-0.5 * MSCALE**2)


class FlaxYarnAttention(FlaxAttention):
    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        return q @ k.swapaxes(-1, -2) * (self.size**-0.5 * (1.0 if self.wrong else MSCALE**2))


BUG = Bug(
    source="huggingface/optimum-intel#1877",
    what="Scores are scaled by the head's size alone, without the square of YaRN's factor.",
    torch=lambda: TorchDecoder(YarnAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxYarnAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"scale|scaling|temperature",
    kind="attention",
    blind=True,
)
