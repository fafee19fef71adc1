"""MaxText's DeepSeek-V3 weights experts by the scores with the bias that is meant for choosing alone.

Source: AI-Hypercomputer/maxtext@c92eeddf8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, WIDTH, FlaxAttention, FlaxDecoder, FlaxMlp, TorchAttention, TorchDecoder, TorchMlp

EXPERTS, CHOSEN, SCALE = 6, 2, 2.5


class DeepseekGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH) / WIDTH**0.5)
        self.e_score_correction_bias = nn.Parameter(torch.zeros(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ self.weight.T).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(CHOSEN, -1).indices
        values = scores.gather(-1, chosen)
        return torch.zeros_like(scores).scatter(-1, chosen, values / values.sum(-1, keepdim=True) * SCALE)


class DeepseekMoe(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.gate = DeepseekGate()
        self.experts = nn.ModuleList(TorchMlp() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * self.gate(x)[..., None, :]).sum(-1)


class FlaxDeepseekGate(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong = wrong
        self.weight = nnx.Param(jnp.zeros((EXPERTS, WIDTH)))
        self.e_score_correction_bias = nnx.Param(jnp.zeros(EXPERTS))

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = jax.nn.sigmoid(x @ self.weight[...].T)
        biased = scores + self.e_score_correction_bias[...]
        _, chosen = jax.lax.top_k(biased, CHOSEN)
        values = jnp.take_along_axis(biased if self.wrong else scores, chosen, -1)
        values = values / values.sum(-1, keepdims=True) * SCALE
        return (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * values[..., None]).sum(-2)


class FlaxDeepseekMoe(nnx.Module):
    def __init__(self, layer: int, wrong: bool) -> None:
        self.gate = FlaxDeepseekGate(wrong)
        self.experts = nnx.List([FlaxMlp() for _ in range(EXPERTS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = jnp.stack([expert(x) for expert in self.experts], -1)
        return (outputs * self.gate(x)[..., None, :]).sum(-1)


BUG = Bug(
    source="AI-Hypercomputer/maxtext@c92eeddf8",
    what="Experts are weighted by their scores with the correction bias, which only chooses them.",
    torch=lambda: TorchDecoder(TorchAttention, DeepseekMoe),
    port=lambda wrong: FlaxDecoder(wrong, FlaxAttention, FlaxDeepseekMoe),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp.gate",
    named=r"(select|choos|chosen|top.?k|rout).*bias|bias.*(select|choos|chosen|top.?k|rout)",
    kind="experts",
    blind=True,
)
