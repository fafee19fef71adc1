"""MLX's ALiBi draws the slopes of heads whose number is no power of two from one geometric series.

Source: ml-explore/mlx@590b4f1c1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import torch
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

HEADS = 6


def slopes(heads: int) -> list[float]:
    """Return the slopes of the paper: of the next lower power of two, and every other one of the next higher."""
    power = 2 ** math.floor(math.log2(heads))
    series = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return series + between


class TorchAlibi(nn.Module):
    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        at = torch.arange(scores.shape[-1])
        distance = -(at[:, None] - at).abs()
        return scores + distance * torch.tensor(slopes(HEADS), dtype=scores.dtype)[:, None, None]


class AlibiAttention(TorchAttention):
    def __init__(self, layer: int) -> None:
        super().__init__(layer, heads=HEADS)
        self.alibi = TorchAlibi()

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return q

    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return self.alibi(super().scored(q, k))


class FlaxAlibiAttention(FlaxAttention):
    def __init__(self, layer: int, wrong: bool) -> None:
        super().__init__(layer, wrong, heads=HEADS)

    def positioned(self, q: jax.Array) -> jax.Array:
        return q

    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        scores = super().scored(q, k)
        steep = [2.0 ** (-8.0 * (i + 1) / HEADS) for i in range(HEADS)] if self.wrong else slopes(HEADS)
        at = jnp.arange(scores.shape[-1])
        return scores - jnp.abs(at[:, None] - at) * jnp.asarray(steep, scores.dtype)[:, None, None]


BUG = Bug(
    source="ml-explore/mlx@590b4f1c1",
    what="Slopes for six heads are those of one geometric series, not the two that ALiBi interleaves.",
    torch=lambda: TorchDecoder(AlibiAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxAlibiAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn.alibi",
    named=r"alibi|slope",
    kind="attention",
    blind=True,
    trap_added=True,
)
