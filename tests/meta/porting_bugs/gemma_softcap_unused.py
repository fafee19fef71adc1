"""mlx-lm's Gemma 2 does not cap the scores of attention.

Source: ml-explore/mlx-examples#857.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

CAP = 50.0


class Gemma2Attention(TorchAttention):
    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().scored(q, k) / CAP) * CAP


class FlaxGemma2Attention(FlaxAttention):
    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        scores = super().scored(q, k)
        return scores if self.wrong else jnp.tanh(scores / CAP) * CAP


BUG = Bug(
    source="ml-explore/mlx-examples#857",
    what="Scores are not capped by a tanh before the mask.",
    torch=lambda: TorchDecoder(Gemma2Attention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxGemma2Attention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"\bcap|softcap|soft-cap|tanh",
    kind="attention",
    blind=True,
)
