"""Idioms of other people's code that the check once refused, each with a mistake that it must find there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import parity

pytestmark = pytest.mark.usefixtures("quick")

IMAGES = np.random.default_rng(0).standard_normal((2, 1, 6, 5))
VECTORS = np.random.default_rng(1).standard_normal((4, 6))


def places(report: parity.Report) -> list[tuple[str, str | None]]:
    return [(finding.layer, finding.trap) for finding in report.models[0].findings]


class Viewing(nn.Module):
    """Views the output of a convolution as vectors, in three ways that depend on the order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(120 + 60 + 30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        real, imaginary = y.chunk(2, 1)
        two = torch.stack((real.view(len(x), -1), imaginary.view(len(x), -1)), 2)
        part = y.as_strided((len(x), 30), (y.stride(0), 1))
        return self.fc(torch.cat((y.view(len(x), -1), torch.view_as_complex(two).abs(), part), 1))


class Flattening(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.conv, self.fc = nnx.Conv(1, 4, (3, 3), padding=1, rngs=rngs), nnx.Linear(210, 3, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x)
        y = (y if self.wrong else y.transpose(0, 3, 1, 2)).reshape(len(x), -1)
        moved = y.reshape(len(x), 4, 30)
        sizes = jnp.sqrt(jnp.square(moved[:, :2]) + jnp.square(moved[:, 2:])).reshape(len(x), -1)
        return self.fc(jnp.concatenate((y, sizes, y[:, :30]), 1))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_view_of_a_convolution(wrong: bool) -> None:
    """The check keeps images channels last in memory for a while, which `view` refuses."""
    torch.manual_seed(0)
    ours = Viewing()
    report = parity.check(ours, parity.move(ours, Flattening(wrong), IMAGES), IMAGES, steps=1)
    assert [layer for layer, _ in places(report)] == ["(the network)"] * wrong
    assert bool(report) is not wrong, str(report)


class Sampling(nn.Module):
    """A variational autoencoder: it draws its code in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.decoder = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, spread = self.mean(x), self.spread(x)
        code = mean + torch.exp(0.5 * spread) * torch.randn_like(spread)
        return self.decoder(code), -0.5 * (1 + spread - mean**2 - spread.exp()).sum(1).mean()


class PortSampling(linen.Module):
    wrong: bool

    def setup(self) -> None:
        self.mean, self.spread, self.decoder = linen.Dense(3), linen.Dense(3), linen.Dense(6)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, spread = self.mean(x), self.spread(x)
        deviation = jnp.exp(spread if self.wrong else 0.5 * spread)
        code = mean + deviation * jax.random.normal(self.make_rng("sample"), spread.shape)
        return self.decoder(code), -0.5 * (1 + spread - mean**2 - jnp.exp(spread)).sum(1).mean()


@pytest.mark.parametrize("wrong", [False, True])
def test_a_stream_of_random_numbers_with_its_own_name(wrong: bool) -> None:
    torch.manual_seed(0)
    ours, module = Sampling(), PortSampling(wrong)
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    port: Any = (module, module.init(keys, jnp.asarray(VECTORS)))
    report = parity.check(ours, parity.move(ours, port, VECTORS), VECTORS, steps=1)
    assert places(report) == [("(the network)", "scale-missing")] * wrong
    assert bool(report) is not wrong, str(report)
