"""KerasNLP's rotary embedding divides the exponents of the frequencies by the scaling factor, not the positions.

Source: keras-team/keras-hub#1605.
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

FACTOR = 4.0


class LinearScalingAttention(TorchAttention):
    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return torch_rotated(q, factor=FACTOR)


class FlaxLinearScalingAttention(FlaxAttention):
    def positioned(self, q: jax.Array) -> jax.Array:
        return flax_rotated(q, exponent=FACTOR) if self.wrong else flax_rotated(q, factor=FACTOR)


BUG = Bug(
    source="keras-team/keras-hub#1605",
    what="The scaling factor of linear RoPE scaling divides the frequencies' exponents instead of the positions.",
    torch=lambda: TorchDecoder(LinearScalingAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxLinearScalingAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"(rotary|rotat|rope).*(scal|frequen|base|theta|position)|frequenc|theta|wavelength",
    kind="rotary",
    blind=True,
    trap_added=True,
)
