"""A layer on the wrong side of an operation is one finding; two mistakes around a layer stay two."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from tests.meta.order import ORDER, activated, on_the_branch, on_the_sum, ordered

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((2, 5, 8))
ANGLES = np.arange(5)[:, None] * 0.3 ** np.arange(2)


def findings_of(pair: tuple[Any, ...]) -> tuple[Any, ...]:
    return parity.check(*pair, steps=1).models[0].findings


@pytest.mark.sample(2)
@pytest.mark.parametrize("number", range(len(ORDER)))
def test_a_layer_on_the_wrong_side_is_one_finding(number: int) -> None:
    case = ORDER[number]
    (finding,) = findings_of(case.make())
    assert (finding.layer, finding.trap) == (case.layer, case.trap)
    assert "block.norm comes" in finding.text


@pytest.mark.parametrize(
    "wrong",
    [
        lambda first, norm, second, x: second(norm(x + first(x)) + x),
        lambda first, norm, second, x: second(1.01 * norm(x + first(x))),
        lambda first, norm, second, x: second(norm(1.01 * x + first(x))),
    ],
    ids=["summed twice", "another factor behind", "another factor before"],
)
def test_what_the_order_does_not_explain_is_no_exchange(wrong: Any) -> None:
    traps = [finding.trap for finding in findings_of(ordered(on_the_branch, wrong)())]
    assert traps
    assert not {"layer-after-operation", "layer-before-operation"} & {*traps}


def test_the_right_order_passes() -> None:
    assert parity.check(*ordered(on_the_sum, on_the_sum)(), steps=1)
    assert parity.check(*ordered(activated(torch.tanh, True), activated(jnp.tanh, True))(), steps=1)


class Attention(torch.nn.Module):
    """Self-attention of two heads, whose queries and keys are normalised and then rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(8, 8) for _ in range(4))
        self.q_norm, self.k_norm = torch.nn.RMSNorm(4, eps=1e-6), torch.nn.RMSNorm(4, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = (torch.tensor(np.concatenate([f(ANGLES)] * 2, -1)).to(x) for f in (np.cos, np.sin))
        q, k, v = (layer(x).unflatten(-1, (2, 4)) for layer in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))

        def turned(t: torch.Tensor) -> torch.Tensor:
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat([-b, a], -1) * sin

        y = torch.nn.functional.scaled_dot_product_attention(turned(q), turned(k), v)
        return self.o(y.transpose(1, 2).flatten(-2))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Attention() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class NNXAttention(nnx.Module):
    def __init__(self, norm_first: bool, rngs: nnx.Rngs) -> None:
        self.q, self.k, self.v, self.o = (nnx.Linear(8, 8, rngs=rngs) for _ in range(4))
        self.q_norm, self.k_norm = (nnx.RMSNorm(4, epsilon=1e-6, rngs=rngs) for _ in range(2))
        self.norm_first = norm_first

    def __call__(self, x: Any) -> Any:
        cos, sin = (f(ANGLES)[:, None] for f in (jnp.cos, jnp.sin))
        q, k, v = (layer(x).reshape(*x.shape[:2], 2, 4) for layer in (self.q, self.k, self.v))

        def turned(t: Any) -> Any:
            a, b = jnp.split(t, 2, -1)
            return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        def prepared(t: Any, norm: Any) -> Any:
            return turned(norm(t)) if self.norm_first else norm(turned(t))

        scores = jnp.einsum("bqhd,bkhd->bhqk", prepared(q, self.q_norm), prepared(k, self.k_norm)) / 2
        y = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), v)
        return self.o(y.reshape(x.shape))


class NNXModel(nnx.Module):
    def __init__(self, norm_first: bool) -> None:
        self.layers = nnx.List([NNXAttention(norm_first, nnx.Rngs(i)) for i in range(2)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("norm_first", [True, False])
def test_norms_behind_a_rotation_are_one_mistake(norm_first: bool) -> None:
    """The rotation stands in another layout in PyTorch, and two norms in each of two layers come too late."""
    torch.manual_seed(0)
    model = Model()
    found = findings_of((model, parity.move(model, NNXModel(norm_first), X), X))
    if norm_first:
        assert found == ()
        return
    (finding,) = found
    assert (finding.layer, finding.trap, finding.also) == ("layers.0", "rotary-before-norm", ("layers.1",))
    assert "layers.0.q_norm and layers.0.k_norm come after" in finding.text
