"""Bounds from both sides: a port that rounds more than the reference is right, and a mistake is one all the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.reports.html import page

pytestmark = pytest.mark.usefixtures("quick")

# E[x²] − E[x]², Flax's fast variance, cancels five digits of these.
X = np.random.default_rng(0).standard_normal((6, 4)) + 300


class Torch(torch.nn.Module):
    """BatchNorm, tanh, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.down = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.norm(x)))


class Flax(nnx.Module):
    """The same, its output times a factor."""

    def __init__(self, fast: bool, factor: float) -> None:
        self.norm = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, use_fast_variance=fast, rngs=nnx.Rngs(0))
        self.down = nnx.Linear(4, 3, rngs=nnx.Rngs(1))
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * self.down(jnp.tanh(self.norm(x)))


def report_of(fast: bool, factor: float = 1.0) -> parity.Report:
    torch.manual_seed(0)
    model = Torch()
    port = parity.move(model, Flax(fast, factor), X)
    return parity.check(model, port, X, steps=1, accept=["bn-running-var"])


def test_a_port_that_rounds_more_passes_and_is_told_so() -> None:
    report = report_of(fast=True)
    assert report, report.failure()
    (model,) = report.models
    (line,) = model.advice
    assert line.startswith("nnx rounds ")
    assert line.endswith(" times more than PyTorch at norm (layer.train); it passes")
    assert f"advice: {line}" in str(report)
    assert report.to_json()["models"][0]["advice"] == [line]
    assert f"<p>Advice: {line}</p>" in page(report)


def test_a_port_that_rounds_alike_is_told_nothing() -> None:
    (model,) = report_of(fast=False).models
    assert model.ok
    assert model.advice == ()


@pytest.mark.sample(1)
@pytest.mark.parametrize("factor", [1 + 1e-9, 1 + 1e-12])
def test_a_small_mistake_is_a_mismatch_although_both_sides_are_measured(factor: float) -> None:
    """Far more than either side rounds, and far less than what is called hopeless at once."""
    report = report_of(fast=False, factor=factor)
    assert report.exit_code == 1, str(report)
    assert report.models[0].advice == ()


def test_a_mistake_is_seen_beside_much_rounding() -> None:
    """A port that loses digits in train mode is held to those that it has."""
    report = report_of(fast=True, factor=1 + 1e-7)
    assert report.exit_code == 1, str(report)
