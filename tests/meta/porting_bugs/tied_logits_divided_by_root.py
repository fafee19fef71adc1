"""The port divides the tied logits by the root of the width, as T5 v1.0 does.

Source: huggingface/transformers#43681.
"""

from __future__ import annotations

import jax
import torch
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
        del self.lm_head

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.embed_tokens.weight)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        del self.lm_head
        self.wrong = wrong

    def logits(self, x: jax.Array) -> jax.Array:
        x = x * WIDTH**-0.5 if self.wrong else x
        return self.embed_tokens.attend(x)


BUG = Bug(
    source="huggingface/transformers#43681",
    what="divides the logits by the root of the width",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("(the network)", "embed_tokens"),
    named=r"logits-divided-by-root|divided by the root",
    kind="embedding",
)
