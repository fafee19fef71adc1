"""Over which axes two models sum the products with a tensor: what tells a square matrix from its transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity
from parity.numerics.pins import Pins
from parity.running.contractions import Use, agreeing, uses
from parity.running.contractions_flax import flax_uses
from parity.running.contractions_pytorch import TorchUses
from parity.running.lifted_flax import trace
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH = 6
INPUTS = np.random.default_rng(0).standard_normal((3, 4, WIDTH)).astype(np.float32)
NUMBERS = np.arange(36.0).reshape(6, 6)


def of_torch(function: Callable[..., Any], x: np.ndarray, *tensors: np.ndarray) -> list[Use]:
    """The uses of tensors in a function of an input and of these; their numbers are counted through all of them."""
    weights = [torch.ones(a.shape, dtype=torch.float64) for a in tensors]
    with TorchUses([(w, torch.from_numpy(a)) for w, a in zip(weights, tensors, strict=True)], weights) as seen:
        function(torch.from_numpy(x), *weights)
    return seen.found


def of_flax(function: Callable[..., Any], x: np.ndarray, *tensors: np.ndarray) -> list[Use]:
    with jax.enable_x64(True):
        weights, given = tuple(jnp.ones(a.shape) for a in tensors), jnp.asarray(x)
        program, _ = trace(lambda *some: function(given, *some), weights, Pins(""))
        return flax_uses(program, tensors, np.cumsum([a.size for a in tensors]))


X = np.random.default_rng(0).standard_normal((5, 6))
# What PyTorch does, what the port does, whether the matrix is the same or transposed.
SUMS = {
    "linear": (lambda x, w: F.linear(x, w), lambda x, w: x @ w.T, False),
    "linear, turned": (lambda x, w: F.linear(x, w), lambda x, w: x @ w, True),
    "the other operand": (lambda x, w: w @ x.T, lambda x, w: jnp.einsum("oi,bi->bo", w, x), False),
    "einsum": (lambda x, w: torch.einsum("bi,io->bo", x, w), lambda x, w: jnp.dot(x, w), False),
    "a product and a sum": (lambda x, w: (x[:, None] * w).sum(-1), lambda x, w: x @ w, True),
    "1x1 convolution": (
        lambda x, w: F.conv1d(x[:, :, None], w[:, :, None]),
        lambda x, w: jax.lax.conv_general_dilated(
            x[:, None], w[None], (1,), "VALID", None, None, ("NHC", "HIO", "NHC")
        ),
        True,
    ),
    "scaled first": (lambda x, w: F.linear(x, 0.1 * w), lambda x, w: x @ (w.T / 10), False),
    "heads": (
        lambda x, w: F.linear(x, w).unflatten(-1, (2, 3)),
        lambda x, w: jnp.einsum("bi,ihd->bhd", x, w.reshape(6, 2, 3)),
        True,
    ),
    "inside a jit": (lambda x, w: F.linear(x, w), jax.jit(lambda x, w: jnp.tanh(x) @ w), True),
    "inside a checkpoint": (lambda x, w: F.linear(x, w), jax.checkpoint(lambda x, w: jnp.tanh(x) @ w), True),
    "rows by an index": (
        lambda x, w: torch.stack([x @ w[i] for i in range(6)], -1),
        lambda x, w: jnp.stack([x @ w[i] for i in range(6)], -1),
        False,
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_form_is_right_if_the_same_numbers_are_summed(name: str) -> None:
    torch_function, flax_function, turned = SUMS[name]
    mine = of_torch(torch_function, X, NUMBERS)
    right, wrong = (
        agreeing(mine, of_flax(flax_function, X, a)) for a in ((NUMBERS, NUMBERS.T)[:: -1 if turned else 1])
    )
    assert right[1] == 36 > wrong[1]


def test_steps_of_a_scan_are_followed() -> None:
    found = of_flax(
        lambda x, w: jax.lax.scan(lambda y, one: (jnp.tanh(y @ one), None), x, w)[0],
        X,
        np.arange(72.0).reshape(2, 6, 6),
    )
    assert [[use.numbers[0], use.numbers[-1]] for use in found] == [[0, 35], [36, 71]]


def test_a_product_of_parameters_alone_says_nothing() -> None:
    """One is x (A B), the other (x A) B: B is summed with A over its first axis in both, and with x over none."""
    pair = NUMBERS, NUMBERS + 36
    assert not of_torch(lambda x, a, b: x @ (a @ b), X, *pair)
    assert not of_flax(lambda x, a, b: x @ (a @ b), X, *pair)
    assert len(of_flax(lambda x, a, b: x @ a @ b, X, *pair)) == 2


def test_what_is_computed_from_which_tensor_is_seen() -> None:
    pair = NUMBERS, NUMBERS + 36
    mine = of_torch(lambda x, a, b: F.linear(torch.tanh(F.linear(x, a)), b), X, *pair)
    right = of_flax(lambda x, a, b: jnp.sin(x @ a.T) @ b.T, X, *pair)
    wrong = of_flax(lambda x, a, b: jnp.sin(x @ b.T) @ a.T, X, *pair)
    assert [use.behind for use in mine] == [use.behind for use in right] == [frozenset(), {0}]
    assert agreeing(mine, right) == (72, 72, 72)
    assert agreeing(mine, wrong) == (72, 72, 0)


def test_height_and_width_of_a_kernel_may_be_exchanged() -> None:
    kernel = np.arange(54.0).reshape(2, 3, 3, 3)
    mine, same, other = (
        list(uses(a, [1], places=(2, 3))) for a in (kernel, kernel.swapaxes(2, 3), kernel.swapaxes(1, 2))
    )
    assert agreeing(mine, same)[0] == 54
    assert agreeing(mine, other)[0] == 0


# --- a square matrix of a module's own, under one name in both models


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(F.gelu(F.linear(torch.relu(self.enter(x)), self.mix)))


class Port(nnx.Module):
    """The same, with the matrix transposed or not, and a mistake in front of it or behind it, or none."""

    def __init__(self, turned: bool, factor: float = 1.0, approximate: bool = False) -> None:
        rngs, self.turned, self.factor, self.approximate = nnx.Rngs(1), turned, factor, approximate
        self.enter, self.leave = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 5, rngs=rngs)
        self.mix = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH)) / 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.enter(x)) * self.factor
        x = x @ (self.mix[...] if self.turned else self.mix[...].T)
        return self.leave(jax.nn.gelu(x, approximate=self.approximate))


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("wrong", [{}, {"factor": 1.01}, {"approximate": True}])
def test_an_own_matrix_is_moved_as_the_port_uses_it(turned: bool, wrong: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Mixed()
    port = parity.move(model, Port(turned, **wrong), INPUTS)
    expected = model.mix.detach().numpy()
    assert np.array_equal(port.mix[...], expected.T if turned else expected)
    assert bool(parity.check(model, port, INPUTS, steps=0)) is not bool(wrong)


def test_a_matrix_that_was_not_transposed_is_a_mistake() -> None:
    """The port holds PyTorch's numbers as they are, and uses them the other way round."""
    torch.manual_seed(0)
    model = Mixed()
    port = parity.move(model, Port(False), INPUTS)
    port.turned = True
    report = parity.check(model, port, INPUTS, steps=0)
    (finding,) = report.models[0].findings
    assert "argument 2 of `linear` (test_contractions.py:" in finding.text
    assert "transposed" in finding.text


def test_equal_names_say_that_a_matrix_is_plain_where_nothing_else_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(Mixed, "forward", lambda self, x: self.leave(F.linear(self.enter(x), self.mix + self.mix.T)))
    monkeypatch.setattr(
        Port, "__call__", lambda self, x: self.leave(1.1 * self.enter(x) @ (self.mix + self.mix[...].T))
    )
    model = Mixed()
    try:
        port = parity.move(model, Port(False), INPUTS)
    except UserError as error:
        pytest.fail(str(error))
    assert np.array_equal(port.mix[...], model.mix.detach().numpy())
