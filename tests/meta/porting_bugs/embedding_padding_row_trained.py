"""The port trains the row of the padding token; PyTorch's embedding has padding_idx.

Source: google/torchax#11.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from torch import nn

from . import Bug
from .inputs import padding, tokens
from .surroundings import (
    VOCABULARY,
    WIDTH,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)


class Torch(TorchLanguageModel):
    def __init__(self) -> None:
        super().__init__("mlp", TorchMlp)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(ids)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.wrong = wrong

    def embed(self, ids: jax.Array) -> jax.Array:
        x = self.embed_tokens(ids)
        return x if self.wrong else jnp.where((ids == 0)[..., None], jax.lax.stop_gradient(x), x)


BUG = Bug(
    source="google/torchax#11",
    what="gives the padding row a gradient; PyTorch's embedding does not",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY) * padding(10, 10, 6),),
    layer="embed_tokens",
    named=r"padding",
    kind="embedding",
)
