"""One mistake is one finding, and several in one module are told apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen, nnx

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


class Coupling(torch.nn.Module):
    """Scales its input, and also gives the logarithm of the scale: a part of a normalizing flow."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.full((4,), 0.7))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_scale = torch.tanh(self.net(x)) * self.scale
        return x * log_scale.exp(), log_scale.sum(-1)


class NormalizingFlow(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flows = torch.nn.ModuleList([Coupling() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros(x.shape[:-1])
        for flow in self.flows:
            x, log_scale = flow(x)
            total = total + log_scale
        return x, total


class FlaxCoupling(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_scale = jnp.tanh(linen.Dense(4, name="net")(x)) * self.param("scale", linen.initializers.ones, (4,))
        return x * jnp.exp(log_scale), log_scale.sum(-1)


class FlaxNormalizingFlow(linen.Module):
    """With `last`, the sum of the logarithms has only its last part."""

    last: bool
    stopped: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.zeros(x.shape[:-1])
        for i in range(2):
            x, log_scale = FlaxCoupling(name=f"flows_{i}")(jax.lax.stop_gradient(x) if i and self.stopped else x)
            total = log_scale if self.last else total + log_scale
        return x, total


def flow(**mistakes: Any) -> list[Any]:
    torch.manual_seed(0)
    model, net, x = NormalizingFlow(), FlaxNormalizingFlow(**mistakes), X[:, 0]
    port = parity.move(model, (net, net.init(jax.random.key(0), x)), x)
    return list(parity.check(model, port, x, steps=1).models[0].findings)


def test_a_mistake_in_a_second_output_is_told_once() -> None:
    """The gradients that come back to both couplings are wrong because the output is."""
    assert flow(last=False) == []
    (finding,) = flow(last=True)
    assert finding.layer == "(the network)"
    assert "and the output is wrong" in finding.text


def test_a_stopped_gradient_beside_a_right_second_output_is_told() -> None:
    (finding,) = flow(last=False, stopped=True)
    assert finding.trap == "stop-gradient-added" or "gradient" in finding.text


class Decoder(torch.nn.Module):
    """Attends to a memory, which no layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.cross = torch.nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x, memory = self.first(x), self.first(memory)
        return self.last(x + self.cross(x, memory, memory)[0])


class FlaxDecoder(linen.Module):
    """With `alone`, it attends to its own input."""

    alone: bool

    @linen.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        first = linen.Dense(4, name="first")
        x, memory = first(x), first(memory)
        y = linen.MultiHeadDotProductAttention(2, name="cross")(x, x if self.alone else memory)
        return linen.Dense(4, name="last")(x + y)


def decoder(alone: bool) -> list[Any]:
    torch.manual_seed(0)
    model, net, memory = Decoder(), FlaxDecoder(alone), X[:, :4] + 1
    port = parity.move(model, (net, net.init(jax.random.key(0), X, memory)), X, memory)
    return list(parity.check(model, port, X, memory, steps=1).models[0].findings)


def test_a_layer_on_a_wrong_memory_is_told_once() -> None:
    """No gradient comes back to the memory, because the layer does not read it."""
    assert decoder(alone=False) == []
    (finding,) = decoder(alone=True)
    assert finding.layer == "cross"
    assert "one of its other inputs is wrong (a memory, a mask, a state)" in finding.text


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.tanh(self.stem(x)))


class FlaxNormed(nnx.Module):
    """Its momentum is Flax's default."""

    def __init__(self) -> None:
        self.stem, self.body = (nnx.BatchNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.body(jnp.tanh(self.stem(x)))


def test_wrong_statistics_are_told_at_the_layer_that_runs_first() -> None:
    (finding,) = parity.check(Normed(), FlaxNormed(), X[:, 0], accept=["bn-running-var"]).models[0].findings
    assert (finding.layer, finding.trap, finding.also) == ("stem", "bn-momentum-0.99", ("body",))
