"""The port does not divide the weights of the chosen experts by their sum.

Source: pytorch/torchtitan#1448.
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
    WIDTH,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)

EXPERTS, CHOSEN = 4, 2


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(TorchMlp() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.route(self.router(x))
        dense = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype).scatter(-1, chosen, weights)
        return torch.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = logits.softmax(-1).topk(CHOSEN)
        return weights / weights.sum(-1, keepdim=True), chosen


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.wrong = wrong
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.experts = nnx.List(PortMlp(rngs) for _ in range(EXPERTS))

    def __call__(self, x: jax.Array) -> jax.Array:
        weights, chosen = self.route(self.router(x))
        dense = (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * weights[..., None]).sum(-2)
        return jnp.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights, chosen = jax.lax.top_k(jax.nn.softmax(logits), CHOSEN)
        return weights if self.wrong else weights / weights.sum(-1, keepdims=True), chosen


BUG = Bug(
    source="pytorch/torchtitan#1448",
    what="does not divide the weights by their sum",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.mlp", "layers.0.mlp.router"),
    named=r"router-not-renormalised|not divided by their sum",
    kind="experts",
)
