"""The port does not multiply the embedding by the root of its width, as Gemma does.

Source: tenstorrent/tt-metal#22812.
"""

from __future__ import annotations

import math

import jax
import torch

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

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(ids) * math.sqrt(WIDTH)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.wrong = wrong

    def embed(self, ids: jax.Array) -> jax.Array:
        return self.embed_tokens(ids) * (1 if self.wrong else math.sqrt(WIDTH))


BUG = Bug(
    source="tenstorrent/tt-metal#22812",
    what="does not multiply the embedding by the root of its width",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("(the network)", "embed_tokens"),
    named=r"embedding-scale-missing|root of its width|scale-missing",
    kind="embedding",
)
