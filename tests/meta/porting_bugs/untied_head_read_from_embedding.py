"""The port computes logits with the embedding, although the checkpoint has a head of its own.

Source: pegainfer-project/pegainfer#544. The default of tie_word_embeddings was taken for the checkpoint's.
"""

from __future__ import annotations

import jax
import torch

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)


class Torch(TorchLanguageModel):
    def __init__(self) -> None:
        super().__init__("mlp", TorchMlp)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(x)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.wrong = wrong

    def logits(self, x: jax.Array) -> jax.Array:
        return self.embed_tokens.attend(x) if self.wrong else self.lm_head(x)


BUG = Bug(
    source="pegainfer-project/pegainfer#544",
    what="computes the logits with the embedding; PyTorch's model has a head of its own",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("lm_head",),
    named=r"tied|embed_tokens|never called|not called",
    kind="configuration",
    trap_added=True,
)
