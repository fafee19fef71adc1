"""The port looks positions up from the first row; OPT's table has two rows in front.

Source: EleutherAI/gpt-neox#650.
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


class Torch(TorchLanguageModel):
    def __init__(self) -> None:
        super().__init__("mlp", TorchMlp)
        self.embed_positions = nn.Embedding(12, WIDTH)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1]) + 2
        return self.embed_tokens(ids) + self.embed_positions(positions)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.wrong = wrong
        self.embed_positions = nnx.Embed(12, WIDTH, rngs=nnx.Rngs(1))

    def embed(self, ids: jax.Array) -> jax.Array:
        positions = jnp.arange(ids.shape[1]) + (0 if self.wrong else 2)
        return self.embed_tokens(ids) + self.embed_positions(positions)


BUG = Bug(
    source="EleutherAI/gpt-neox#650",
    what="looks positions up without the offset of two",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("embed_positions", "(the network)"),
    named=r"position|offset|rows?|inputs? (is|are) another|other indices",
    kind="embedding",
)
