"""The port's router takes the softmax over all experts; Mixtral's over the chosen ones.

Source: NVIDIA/TensorRT-LLM#2752.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .surroundings import CHOSEN, VOCABULARY, PortExperts, PortLanguageModel, TorchExperts, TorchLanguageModel


class Torch(TorchExperts):
    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = logits.topk(CHOSEN)
        return weights.softmax(-1), chosen


class Port(PortExperts):
    def route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.wrong:
            return jax.lax.top_k(jax.nn.softmax(logits), CHOSEN)
        weights, chosen = jax.lax.top_k(logits, CHOSEN)
        return jax.nn.softmax(weights), chosen


BUG = Bug(
    source="NVIDIA/TensorRT-LLM#2752",
    what="takes the softmax over all experts; PyTorch's model over the chosen ones",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.mlp", "layers.0.mlp.router"),
    named=r"router-softmax-of-all|softmax goes over all|router-not-renormalised",
    kind="experts",
)
