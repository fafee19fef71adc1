"""The port's expert weights contain the bias that experts are chosen with.

Source: huggingface/transformers#41647.
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
        self.correction = nn.Parameter(0.3 * torch.randn(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.route(self.router(x))
        dense = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype).scatter(-1, chosen, weights)
        return torch.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = logits.sigmoid()
        chosen = (scores + self.correction).topk(CHOSEN).indices
        return scores.gather(-1, chosen), chosen


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.wrong = wrong
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.experts = nnx.List(PortMlp(rngs) for _ in range(EXPERTS))
        self.correction = nnx.Param(jnp.zeros(EXPERTS))

    def __call__(self, x: jax.Array) -> jax.Array:
        weights, chosen = self.route(self.router(x))
        dense = (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * weights[..., None]).sum(-2)
        return jnp.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jax.nn.sigmoid(logits)
        biased = scores + self.correction[...]
        _, chosen = jax.lax.top_k(biased, CHOSEN)
        return jnp.take_along_axis(biased if self.wrong else scores, chosen, -1), chosen


BUG = Bug(
    source="huggingface/transformers#41647",
    what="weighs experts by scores that contain the choosing bias",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.mlp", "layers.0.mlp.router"),
    named=r"router-bias-in-weights|bias that experts are chosen with",
    kind="experts",
)
