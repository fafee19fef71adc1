"""One mistake is one finding, and several in one module are told apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen

import parity
from parity.reports.html import page

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 6, 4))
TABLE = np.sin(np.arange(6) / 3.0)[:, None]


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.c(F.gelu(torch.relu(self.a(x)) * self.b(x)))


class Stream(torch.nn.Module):
    """A residual stream of blocks behind a table of positions."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + torch.tensor(TABLE)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class FlaxBlock(linen.Module):
    approximate: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.relu(linen.Dense(4, name="a")(x)) * linen.Dense(4, name="b")(x)
        return x + linen.Dense(4, name="c")(linen.gelu(y, approximate=self.approximate))


class FlaxStream(linen.Module):
    depth: int
    shift: float = 0.0
    approximate: tuple[int, ...] = ()

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Dense(4, name="first")(x) + (TABLE + self.shift)
        for i in range(self.depth):
            x = FlaxBlock(i in self.approximate, name=f"blocks_{i}")(x)
        return linen.Dense(4, name="last")(x)


def findings_of(depth: int, **mistakes: Any) -> tuple[list[Any], parity.Report]:
    torch.manual_seed(0)
    model, net = Stream(depth), FlaxStream(depth, **mistakes)
    port = parity.move(model, (net, net.init(jax.random.key(0), X)), X)
    report = parity.check(model, port, X, steps=1)
    return list(report.models[0].findings), report


@pytest.mark.nightly
def test_a_difference_that_a_residual_stream_carries_on_is_told_once() -> None:
    (finding,), _ = findings_of(3, shift=1e-8)
    assert finding.layer == "(the network)"
    assert "between first and blocks.0" in finding.text


@pytest.mark.sample(1)
@pytest.mark.parametrize("shift", [1e-8, 1e-3])
def test_a_mistake_behind_a_difference_is_named(shift: float) -> None:
    (first, second), _ = findings_of(2, shift=shift, approximate=(1,))
    assert "between first and blocks.0" in first.text
    assert (second.layer, second.trap, second.also) == ("blocks.1", "gelu-tanh", ())


def test_one_mistake_in_several_layers_is_one_finding() -> None:
    (finding,), report = findings_of(3, approximate=(0, 1, 2))
    assert (finding.layer, finding.trap, finding.also) == ("blocks.0", "gelu-tanh", ("blocks.1", "blocks.2"))
    assert " (also at 2 more: blocks.1, blocks.2)" in str(report)
    assert "also at 2 more:" in page(report)
    assert report.to_json()["models"][0]["findings"][0]["also"] == ["blocks.1", "blocks.2"]


class Tied(torch.nn.Module):
    """An embedding that is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lin = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.lin(self.emb(tokens))) @ self.emb.weight.T


class FlaxTied(linen.Module):
    approximate: bool
    stopped: bool = False

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        emb = linen.Embed(11, 6, name="emb")
        x = emb(tokens)
        x = jax.lax.stop_gradient(x) if self.stopped else x
        return emb.attend(linen.gelu(linen.Dense(6, name="lin")(x), approximate=self.approximate))


def tied(**mistakes: Any) -> list[Any]:
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 5))
    model, net = Tied(), FlaxTied(**mistakes)
    port = parity.move(model, (net, net.init(jax.random.key(0), jnp.array(tokens))), tokens)
    return list(parity.check(model, port, tokens, steps=1).models[0].findings)


def test_a_mistake_in_front_of_a_tied_output_layer_is_told_once() -> None:
    assert tied(approximate=False) == []
    (finding,) = tied(approximate=True)
    assert finding.trap == "gelu-tanh"


def test_a_wrong_gradient_of_a_tied_embedding_is_told() -> None:
    (finding,) = tied(approximate=False, stopped=True)
    assert "gradient" in finding.text
