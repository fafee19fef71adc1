"""A test suite for a port: the fixture `parity` comes with the package.

pytest examples/test_port.py
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from parity import move


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, Any, np.ndarray]:
    torch.manual_seed(0)
    torch_model, x = TorchNet(), np.random.default_rng(0).standard_normal((2, 3, 9, 8))
    return torch_model, move(torch_model, Net(nnx.Rngs(0)), x), x


def test_the_port_is_right(pair: tuple[torch.nn.Module, Any, np.ndarray], parity: Any) -> None:
    parity(*pair)


def test_it_trains_alike_with_adamw(pair: tuple[torch.nn.Module, Any, np.ndarray], parity: Any) -> None:
    parity(*pair, optimizer="adamw", steps=5)


# It prints:
#
#     …
#     2 passed in …
