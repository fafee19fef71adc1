"""MaxText's Gemma 4 multiplies the scale of an expert into its weight and into its output.

Source: AI-Hypercomputer/maxtext@014fc4985.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import (
    VOCABULARY,
    WIDTH,
    FlaxAttention,
    FlaxDecoder,
    FlaxMlp,
    TorchAttention,
    TorchDecoder,
    TorchMlp,
    linear,
)

EXPERTS, CHOSEN = 6, 2


class Gemma4Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.per_expert_scale = nn.Parameter(torch.ones(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, chosen = self.proj(x).softmax(-1).topk(CHOSEN, -1)
        values = values / values.sum(-1, keepdim=True) * self.per_expert_scale[chosen]
        return torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype).scatter(-1, chosen, values)


class Gemma4Moe(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.router = Gemma4Router()
        self.experts = nn.ModuleList(TorchMlp() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * self.router(x)[..., None, :]).sum(-1)


class FlaxGemma4Router(nnx.Module):
    def __init__(self) -> None:
        self.proj = linear(WIDTH, EXPERTS)
        self.per_expert_scale = nnx.Param(jnp.ones(EXPERTS))

    def __call__(self, x: jax.Array) -> jax.Array:
        values, chosen = jax.lax.top_k(jax.nn.softmax(self.proj(x), -1), CHOSEN)
        values = values / values.sum(-1, keepdims=True) * self.per_expert_scale[...][chosen]
        return (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * values[..., None]).sum(-2)


class FlaxGemma4Moe(nnx.Module):
    def __init__(self, layer: int, wrong: bool) -> None:
        self.wrong = wrong
        self.router = FlaxGemma4Router()
        self.experts = nnx.List([FlaxMlp() for _ in range(EXPERTS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = jnp.stack([expert(x) for expert in self.experts], -1)
        if self.wrong:
            outputs = outputs * self.router.per_expert_scale[...]
        return (outputs * self.router(x)[..., None, :]).sum(-1)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@014fc4985",
    what="The scale of an expert multiplies its weight and once more its output.",
    torch=lambda: TorchDecoder(TorchAttention, Gemma4Moe),
    port=lambda wrong: FlaxDecoder(wrong, FlaxAttention, FlaxGemma4Moe),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"scale|twice|squared|double",
    kind="experts",
    blind=True,
    trap_added=True,
)
