"""MaxText's Qwen3.5 rotates the whole head where the model rotates a quarter of it.

Source: AI-Hypercomputer/maxtext@942563445.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .skeletons import (
    VOCABULARY,
    FlaxAttention,
    FlaxDecoder,
    TorchAttention,
    TorchDecoder,
    flax_rotated,
    torch_rotated,
)

SIZE = 16
ROTARY = SIZE // 4


class PartialAttention(TorchAttention):
    def __init__(self, layer: int) -> None:
        super().__init__(layer, size=SIZE)

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch_rotated(q[..., :ROTARY]), q[..., ROTARY:]], -1)


class FlaxPartialAttention(FlaxAttention):
    def __init__(self, layer: int, wrong: bool) -> None:
        super().__init__(layer, wrong, size=SIZE)

    def positioned(self, q: jax.Array) -> jax.Array:
        rotary = SIZE if self.wrong else ROTARY
        return jnp.concatenate([flax_rotated(q[..., :rotary]), q[..., rotary:]], -1)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@942563445",
    what="The partial rotary factor is not passed on, so all of a head is rotated instead of its first quarter.",
    torch=lambda: TorchDecoder(PartialAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxPartialAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"partial|(rotary|rotat|rope).*(part|whole|all of|dimension|fraction)|(part|whole|all of).*(rotat|rope)",
    kind="rotary",
    blind=True,
)
