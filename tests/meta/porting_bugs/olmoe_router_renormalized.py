"""Mlxcel's OLMoE takes the softmax over the chosen experts alone.

Source: lablup/mlxcel#391.
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


class OlmoeBlock(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(TorchMlp() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = self.gate(x).softmax(-1)
        values, chosen = probabilities.topk(CHOSEN, -1)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, values)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights[..., None, :]).sum(-1)


class FlaxOlmoeBlock(nnx.Module):
    def __init__(self, layer: int, wrong: bool) -> None:
        self.wrong = wrong
        self.gate = linear(WIDTH, EXPERTS)
        self.experts = nnx.List([FlaxMlp() for _ in range(EXPERTS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        logits = self.gate(x)
        if self.wrong:
            values, chosen = jax.lax.top_k(logits, CHOSEN)
            values = jax.nn.softmax(values, -1)
        else:
            values, chosen = jax.lax.top_k(jax.nn.softmax(logits, -1), CHOSEN)
        weights = (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * values[..., None]).sum(-2)
        outputs = jnp.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights[..., None, :]).sum(-1)


BUG = Bug(
    source="lablup/mlxcel#391",
    what="The router's softmax runs over the chosen experts, so their weights add up to one.",
    torch=lambda: TorchDecoder(TorchAttention, OlmoeBlock),
    port=lambda wrong: FlaxDecoder(wrong, FlaxAttention, FlaxOlmoeBlock),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"router|top.?k|renormali|chosen|expert|add up|sum to",
    kind="experts",
    blind=True,
)
