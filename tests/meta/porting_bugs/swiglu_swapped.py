"""mlx-lm's SwiGLU applies the activation to the other projection.

Source: ml-explore/mlx-lm#767.
"""

from __future__ import annotations

import jax
from flax import nnx

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxAttention, FlaxDecoder, FlaxMlp, TorchDecoder


class FlaxSwappedMlp(FlaxMlp):
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(nnx.silu(up) * gate if self.wrong else nnx.silu(gate) * up)


BUG = Bug(
    source="ml-explore/mlx-lm#767",
    what="The activation of the gated unit is that of the value, and the gate multiplies it.",
    torch=TorchDecoder,
    port=lambda wrong: FlaxDecoder(wrong, FlaxAttention, FlaxSwappedMlp),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"swap|exchang|other (half|branch|factor|projection)|gate",
    kind="gated unit",
    blind=True,
)
