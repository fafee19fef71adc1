"""TransformerLens leaves gpt-oss's learned sink out of the softmax over the scores.

Source: TransformerLensOrg/TransformerLens#1621.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import HEADS, VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder


class SinkAttention(TorchAttention):
    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def weighted(self, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.masked_fill(~self.visible(scores.shape[-1]), -torch.inf)
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


class FlaxSinkAttention(FlaxAttention):
    def __init__(self, layer: int, wrong: bool) -> None:
        super().__init__(layer, wrong)
        self.sinks = nnx.Param(jnp.zeros(HEADS))

    def weighted(self, scores: jax.Array) -> jax.Array:
        if self.wrong:
            return super().weighted(scores)
        scores = jnp.where(self.visible(scores.shape[-1]), scores, -jnp.inf)
        sinks = jnp.broadcast_to(self.sinks[...].reshape(1, -1, 1, 1), (*scores.shape[:-1], 1))
        return jax.nn.softmax(jnp.concatenate([scores, sinks], -1), -1)[..., :-1]


BUG = Bug(
    source="TransformerLensOrg/TransformerLens#1621",
    what="The sink logit of each head is loaded, but not among the scores of the softmax.",
    torch=lambda: TorchDecoder(SinkAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxSinkAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"sink|unused|never used|not used|does not (use|reach)|no gradient|denominator",
    kind="attention",
    blind=True,
    trap_added=True,
)
