"""TransformerLens's Mistral GPT-2 does not divide the scores of a layer by its number.

Source: TransformerLensOrg/TransformerLens#27.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder


class ScaledByLayerAttention(TorchAttention):
    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return super().scored(q, k) / (self.layer + 1)


class FlaxScaledByLayerAttention(FlaxAttention):
    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        scores = super().scored(q, k)
        return scores if self.wrong else scores / (self.layer + 1)


BUG = Bug(
    source="TransformerLensOrg/TransformerLens#27",
    what="Scores are not divided by the number of the layer, counted from one.",
    torch=lambda: TorchDecoder(ScaledByLayerAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxScaledByLayerAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.1.self_attn",
    named=r"scale|scaling|divid|temperature",
    kind="attention",
    blind=True,
)
