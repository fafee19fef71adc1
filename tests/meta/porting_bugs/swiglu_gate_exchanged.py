"""The port's activation is on the other factor of SwiGLU.

Source: ml-explore/mlx-lm#767.
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
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.wrong = wrong
        self.gate_proj = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.up_proj = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down_proj = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gate * jax.nn.silu(up) if self.wrong else jax.nn.silu(gate) * up)


BUG = Bug(
    source="ml-explore/mlx-lm#767",
    what="takes SiLU of the other factor",
    torch=lambda: TorchLanguageModel("mlp", Torch),
    port=lambda wrong: PortLanguageModel("mlp", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.mlp",
    named=r"gate-exchanged|other factor",
    kind="gated unit",
)
