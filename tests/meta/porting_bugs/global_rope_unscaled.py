"""mlx-vlm's Gemma 3 does not scale the positions of the layers with global attention.

Source: Blaizzy/mlx-vlm#1709.
"""

from __future__ import annotations

import jax
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

LOCAL, GLOBAL, FACTOR = 10_000.0, 1_000_000.0, 8.0


class Gemma3Attention(TorchAttention):
    """Layer 0 is local, layer 1 is global."""

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return torch_rotated(q, GLOBAL, FACTOR) if self.layer == 1 else torch_rotated(q, LOCAL)


class FlaxGemma3Attention(FlaxAttention):
    """Layer 0 is local, layer 1 is global."""

    def positioned(self, q: jax.Array) -> jax.Array:
        if self.layer == 0:
            return flax_rotated(q, LOCAL)
        return flax_rotated(q, GLOBAL, 1.0 if self.wrong else FACTOR)


BUG = Bug(
    source="Blaizzy/mlx-vlm#1709",
    what="Layers with global attention rotate by plain positions; the model divides them by 8 there.",
    torch=lambda: TorchDecoder(Gemma3Attention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxGemma3Attention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.1.self_attn",
    named=r"(rotary|rotat|rope).*(scal|frequen|base|theta|position)|frequenc|theta|wavelength|position.*scal",
    kind="rotary",
    blind=True,
)
