"""The port lacks the norm in front of the head.

Source: huggingface/transformers#17785. OPT had it, and the port did not.
"""

from __future__ import annotations

import jax
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
        self.final_layer_norm = nn.LayerNorm(WIDTH)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.final_layer_norm(x))


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.final_layer_norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=nnx.Rngs(0))
        self.wrong = wrong

    def logits(self, x: jax.Array) -> jax.Array:
        return self.lm_head(x if self.wrong else self.final_layer_norm(x))


BUG = Bug(
    source="huggingface/transformers#17785",
    what="has the final norm and does not call it",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer="final_layer_norm",
    named=r"norm.*(missing|never called|not called|is not)|never called|not called",
    kind="norm",
)
