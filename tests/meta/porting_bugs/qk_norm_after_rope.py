"""Torchtune's Qwen3 normalizes queries and keys after the rotary embedding; Hugging Face's does it before.

Source: meta-pytorch/torchtune#2809.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .skeletons import (
    SIZE,
    VOCABULARY,
    FlaxAttention,
    FlaxDecoder,
    FlaxRMSNorm,
    TorchAttention,
    TorchDecoder,
    TorchRMSNorm,
    flax_rotated,
    torch_rotated,
)


class Qwen3Attention(TorchAttention):
    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.q_norm, self.k_norm = TorchRMSNorm(SIZE), TorchRMSNorm(SIZE)

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return torch_rotated(self.q_norm(q))

    def positioned_key(self, k: torch.Tensor) -> torch.Tensor:
        return torch_rotated(self.k_norm(k))


class FlaxQwen3Attention(FlaxAttention):
    def __init__(self, layer: int, wrong: bool) -> None:
        super().__init__(layer, wrong)
        self.q_norm, self.k_norm = FlaxRMSNorm(SIZE), FlaxRMSNorm(SIZE)

    def positioned(self, q: jax.Array) -> jax.Array:
        return self.q_norm(flax_rotated(q)) if self.wrong else flax_rotated(self.q_norm(q))

    def positioned_key(self, k: jax.Array) -> jax.Array:
        return self.k_norm(flax_rotated(k)) if self.wrong else flax_rotated(self.k_norm(k))


BUG = Bug(
    source="meta-pytorch/torchtune#2809",
    what="Queries and keys are normalized after the rotary embedding instead of before.",
    torch=lambda: TorchDecoder(Qwen3Attention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxQwen3Attention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"norm.*(after|before).*(rotary|rotat|rope)|(rotary|rotat|rope).*(after|before).*norm",
    kind="rotary",
    blind=True,
    trap_added=True,
)
