"""Weights that PyTorch computes of other parameters, as weight norm does, against plain weights in the port."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import parity
from parity.api import paired
from parity.pairing.derived import rules
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

INPUTS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def hooked(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's older weight norm
        return nn.utils.weight_norm(layer)


def hooked_spectral(layer: nn.Module) -> nn.Module:
    return nn.utils.spectral_norm(layer)


def model(norm: Callable[[Any], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2)).eval()


class Plain(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jnp.tanh(self.first(x)))


class Normed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.v, self.g, self.b = (nnx.Param(jax.random.normal(rngs.params(), s)) for s in ((6, 4), (6, 1), (6,)))
        self.last = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        v = self.v[...]
        weight = self.g[...] * v / jnp.sqrt(jnp.square(v).sum(1, keepdims=True))
        return self.last(jnp.tanh(x @ weight.T + self.b[...]))


HOOKED = [hooked, hooked_spectral]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm, *HOOKED])
def test_the_port_holds_the_weight_that_pytorch_computes(norm: Callable[[Any], nn.Module]) -> None:
    ours = model(norm)
    before = ours(torch.tensor(INPUTS))
    moved = parity.move(ours, Plain(), INPUTS)
    assert np.array_equal(moved.first.kernel[...], ours[0].weight.detach().numpy().T)  # pyright: ignore
    report = parity.check(ours, moved, INPUTS, steps=1)
    assert report, str(report)
    assert "How PyTorch trains its parts is not compared" in str(report).replace("\n", " ")
    assert (
        "0.weight: PyTorch computes it of other parameters, whose training is not compared" in report.models[0].pairing
    )
    # The caller's model is as it was.
    assert torch.equal(before, ours(torch.tensor(INPUTS)))
    assert norm in HOOKED or parametrize.is_parametrized(ours[0])  # pyright: ignore


def test_a_port_that_holds_the_direction_alone_is_found() -> None:
    """The kernel is `original1`: the norm of each row was left out."""
    ours = model(parametrizations.weight_norm)
    with torch.no_grad():
        ours[0].parametrizations.weight.original0.mul_(1.5)  # pyright: ignore
    moved = parity.move(ours, Plain(), INPUTS)
    moved.first.kernel.set_value(ours[0].parametrizations.weight.original1.detach().numpy().T)  # pyright: ignore
    report = parity.check(ours, moved, INPUTS, steps=0)
    assert [f.layer for f in report.models[0].findings] == ["0"]


def test_a_port_with_the_same_parameters_holds_them() -> None:
    ours = model(parametrizations.weight_norm)
    report = parity.check(ours, parity.move(ours, Normed(), INPUTS), INPUTS, steps=1)
    assert report, str(report)
    assert "is not compared" not in str(report)


def test_a_conversion_computes_nothing() -> None:
    with pytest.raises(UserError, match=r"0\.weight: PyTorch's checkpoint holds other parameters"):
        paired(model(parametrizations.weight_norm), Plain(), INPUTS, read=rules)
