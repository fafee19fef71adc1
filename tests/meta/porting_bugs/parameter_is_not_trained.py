"""The port keeps a learned start as a constant, which the optimizer does not see.

Source: imbue-ai/slot_attention#8.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slots_mu = nn.Parameter(torch.randn(1, 1, 6))
        self.project, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.project(x + self.slots_mu).relu())


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.slots_mu = nnx.Param(jax.random.normal(rngs.params(), (1, 1, 6)))
        self.project, self.fc = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        start = self.slots_mu[...]
        start = jax.lax.stop_gradient(start) if self.wrong else start
        return self.fc(jax.nn.relu(self.project(x + start)))


BUG = Bug(
    source="imbue-ai/slot_attention#8",
    what="does not train a parameter that PyTorch's model trains",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 5, 6),),
    layer=("(the network)", "slots_mu"),
    named=r"stop-gradient|stop_gradient|detach|not trained|no gradient|gradient is zero",
    kind="training",
    trap_added=True,
)
