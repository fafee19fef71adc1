"""x-transformers' relative positions tell past from future in causal attention, and not where both count.

Source: lucidrains/x-transformers#10.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import HEADS, VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

BUCKETS, DISTANCE = 32, 128


def torch_bucket(relative: torch.Tensor) -> torch.Tensor:
    half, n = BUCKETS // 2, -relative
    bucket, n = (n < 0).long() * half, n.abs()
    exact = half // 2
    far = exact + (torch.log(n.clamp(1).float() / exact) / math.log(DISTANCE / exact) * (half - exact)).long()
    return bucket + torch.where(n < exact, n, far.clamp(max=half - 1))


def flax_bucket(relative: jax.Array, causal: bool) -> jax.Array:
    n, buckets = -relative, BUCKETS
    if causal:
        bucket, n = jnp.zeros_like(n), jnp.maximum(n, 0)
    else:
        buckets = BUCKETS // 2
        bucket, n = (n < 0).astype(int) * buckets, jnp.abs(n)
    exact = buckets // 2
    part = jnp.log(jnp.maximum(n, 1).astype(jnp.float32) / exact) / math.log(DISTANCE / exact)
    far = exact + (part * (buckets - exact)).astype(int)
    return bucket + jnp.where(n < exact, n, jnp.minimum(far, buckets - 1))


class TorchRelativePositionBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(BUCKETS, HEADS)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        at = torch.arange(scores.shape[-1])
        return scores + self.relative_attention_bias(torch_bucket(at - at[:, None])).permute(2, 0, 1)


class RelativeAttention(TorchAttention):
    """The encoder's: it sees both directions."""

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.rel_pos = TorchRelativePositionBias()

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return q

    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return self.rel_pos(super().scored(q, k))

    def visible(self, length: int) -> torch.Tensor:
        return torch.ones(length, length, dtype=torch.bool)


class FlaxRelativePositionBias(nnx.Module):
    def __init__(self, causal: bool) -> None:
        self.causal = causal
        self.relative_attention_bias = nnx.Embed(BUCKETS, HEADS, rngs=nnx.Rngs(0))

    def __call__(self, scores: jax.Array) -> jax.Array:
        at = jnp.arange(scores.shape[-1])
        buckets = flax_bucket(at - at[:, None], self.causal)
        return scores + self.relative_attention_bias(buckets).transpose(2, 0, 1)


class FlaxRelativeAttention(FlaxAttention):
    def __init__(self, layer: int, wrong: bool) -> None:
        super().__init__(layer, wrong)
        self.rel_pos = FlaxRelativePositionBias(causal=wrong)

    def positioned(self, q: jax.Array) -> jax.Array:
        return q

    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        return self.rel_pos(super().scored(q, k))

    def visible(self, length: int) -> jax.Array:
        return jnp.ones((length, length), bool)


BUG = Bug(
    source="lucidrains/x-transformers#10",
    what="The buckets of an encoder do not tell a token before from one behind.",
    torch=lambda: TorchDecoder(RelativeAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxRelativeAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn.rel_pos",
    named=r"bucket|bidirection|direction|causal|relative position|sign",
    kind="embedding",
    blind=True,
    trap_added=True,
)
