"""The port tiles the heads of keys and values; PyTorch's model repeats each for its group of queries.

Source: onnx/onnx#7274.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
)


class Torch(TorchAttention):
    def __init__(self) -> None:
        super().__init__(kv_heads=2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Port(PortAttention):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        super().__init__(rngs, wrong, kv_heads=2)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.tile(x, (1, 1, 2, 1)) if self.wrong else jnp.repeat(x, 2, 2) for x in (k, v))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)


BUG = Bug(
    source="onnx/onnx#7274",
    what="tiles the heads of keys and values; PyTorch's model repeats each",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"grouped-heads-tiled|tiled",
    kind="attention",
)
