"""Unsloth multiplies the logits by the tanh of the soft cap instead of the cap.

Source: unslothai/unsloth-zoo#593.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .skeletons import VOCABULARY, FlaxDecoder, TorchDecoder

CAP = 30.0


class CappedTorchDecoder(TorchDecoder):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return CAP * torch.tanh(super().forward(tokens) / CAP)


class CappedFlaxDecoder(FlaxDecoder):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.wrong = wrong

    def __call__(self, tokens: jax.Array) -> jax.Array:
        logits = super().__call__(tokens)
        return (logits if self.wrong else CAP) * jnp.tanh(logits / CAP)


BUG = Bug(
    source="unslothai/unsloth-zoo#593",
    what="The logits, not the cap, multiply the tanh.",
    torch=CappedTorchDecoder,
    port=CappedFlaxDecoder,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("lm_head", "", "(the network)"),
    named=r"tanh|\bcap|softcap|soft-cap",
    kind="configuration",
    blind=True,
    trap_added=True,
)
