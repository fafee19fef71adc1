"""The port's router takes the softmax over the chosen experts.

Source: lablup/mlxcel#391.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .surroundings import CHOSEN, VOCABULARY, PortExperts, PortLanguageModel, TorchExperts, TorchLanguageModel


class Torch(TorchExperts):
    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits.softmax(-1).topk(CHOSEN)


class Port(PortExperts):
    def route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.wrong:
            weights, chosen = jax.lax.top_k(logits, CHOSEN)
            return jax.nn.softmax(weights), chosen
        return jax.lax.top_k(jax.nn.softmax(logits), CHOSEN)


BUG = Bug(
    source="lablup/mlxcel#391",
    what="takes the softmax over the chosen experts; PyTorch's model over all",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.mlp", "layers.0.mlp.router"),
    named=r"router-softmax-of-chosen|router-renormalised|softmax goes over the chosen|divided by their sum",
    kind="experts",
)
