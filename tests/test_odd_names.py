"""Modules under names that hold what the check writes between names: `/`, `@`, `#`, spaces, letters of any script."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


class TorchNet(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, torch.nn.Linear(4, 4))
        self.register_parameter(f"own{name}", torch.nn.Parameter(torch.randn(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(getattr(self, self.name)(x)) * getattr(self, f"own{self.name}")


class Net(nnx.Module):
    def __init__(self, name: str, factor: float = 1.0) -> None:
        self.name, self.factor = name, factor
        setattr(self, name, nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
        setattr(self, f"own{name}", nnx.Param(jnp.ones(4)))

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(getattr(self, self.name)(x) * self.factor) * getattr(self, f"own{self.name}")[...]


@pytest.mark.sample(2)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["a/b", "exp_avg/x", "a@3/b", "a#2", "a b", "卷积"])
def test_a_faithful_port_passes_and_a_mistake_is_found(name: str) -> None:
    """`a/b` ended in a KeyError when the optimizer's tensors were compared."""
    torch.manual_seed(0)
    model = TorchNet(name)
    report = parity.check(model, parity.move(model, Net(name), X), X, optimizer="adamw")
    assert report, str(report)
    wrong = parity.check(model, parity.move(model, Net(name, 1.001), X), X)
    assert not wrong
    assert any(name in finding.text or name in finding.layer for finding in wrong.models[0].findings), str(wrong)
