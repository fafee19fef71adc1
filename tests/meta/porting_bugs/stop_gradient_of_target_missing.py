"""The port lets gradients into the target branch, which PyTorch's model detaches.

Source: philtabor/Deep-Q-Learning-Paper-To-Code#9.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.online(x).tanh()
        goal = self.target(x).tanh().detach()
        return (value - goal).square()


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.online, self.target = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        value, goal = jnp.tanh(self.online(x)), jnp.tanh(self.target(x))
        return jnp.square(value - (goal if self.wrong else jax.lax.stop_gradient(goal)))


BUG = Bug(
    source="philtabor/Deep-Q-Learning-Paper-To-Code#9",
    what="differentiates the target; PyTorch's model detaches it",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(7, 6),),
    layer=("(the network)", "target"),
    named=r"stop-gradient-missing|stop.?gradient|detach",
    kind="training",
    trap_added=True,
)
