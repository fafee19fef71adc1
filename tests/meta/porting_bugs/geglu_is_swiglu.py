"""The port's gated unit has SiLU; Gemma's has the tanh approximation of GELU.

Source: huggingface/candle#3747.
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
    TorchLanguageModel,
)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.wrong = wrong
        self.gate_proj = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.up_proj = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down_proj = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        activation = jax.nn.silu if self.wrong else jax.nn.gelu
        return self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))


BUG = Bug(
    source="huggingface/candle#3747",
    what="has SiLU; PyTorch's model has the tanh approximation of GELU",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"silu",
    kind="gated unit",
    trap_added=True,
)
