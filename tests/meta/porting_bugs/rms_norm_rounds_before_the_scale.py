"""The port rounds to the input's type in front of the scale, as Llama does; Gemma rounds behind it.

Source: huggingface/transformers#29402.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import VOCABULARY, WIDTH, PortLanguageModel, PortNormed, TorchLanguageModel, TorchNormed


class TorchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype)


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
        scale = 1 + self.weight[...].astype(y.dtype)
        return y.astype(x.dtype) * scale.astype(x.dtype) if self.wrong else (y * scale).astype(x.dtype)


BUG = Bug(
    source="huggingface/transformers#29402",
    what="rounds in front of the scale; PyTorch's model rounds behind it",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.block.norm",
    named=r"bfloat16|rounds|cast",
    kind="norm",
)
