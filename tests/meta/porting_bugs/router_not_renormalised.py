"""The port does not divide the weights of the chosen experts by their sum.

Source: pytorch/torchtitan#1448.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .surroundings import CHOSEN, VOCABULARY, PortExperts, PortLanguageModel, TorchExperts, TorchLanguageModel


class Torch(TorchExperts):
    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = logits.softmax(-1).topk(CHOSEN)
        return weights / weights.sum(-1, keepdim=True), chosen


class Port(PortExperts):
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
