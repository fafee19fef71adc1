"""Recurrent cells that a port writes itself, against PyTorch's layers and against a cell of one's own in PyTorch."""

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
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, STEPS = 4, 3
INPUTS = np.random.default_rng(0).standard_normal((2, STEPS, WIDTH)).astype(np.float32)


class Whole(nn.Module):
    """A recurrent layer over the whole sequence."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn, self.head = kind(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Stepwise(nn.Module):
    """A cell, one step after the other."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class OwnLSTMCell(nn.Module):
    """An LSTM's step, with the tensors of PyTorch's, under its names or other ones."""

    def __init__(self, *_: int, ends: tuple[str, str] = ("ih", "hh")) -> None:
        super().__init__()
        self.ends = ends
        for end in ends:
            self.register_parameter(f"weight_{end}", nn.Parameter(torch.randn(4 * WIDTH, WIDTH) / 2))
            self.register_parameter(f"bias_{end}", nn.Parameter(torch.randn(4 * WIDTH)))

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        state = state or (torch.zeros_like(x), torch.zeros_like(x))
        first, second = (
            F.linear(value, getattr(self, f"weight_{end}"), getattr(self, f"bias_{end}"))
            for value, end in zip((x, state[0]), self.ends, strict=True)
        )
        i, f, g, o = (first + second).chunk(4, -1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class Dense(nnx.Module):
    """Two dense layers, the second with a bias or without."""

    def __init__(self, gates: int, bias: bool = True) -> None:
        rngs = nnx.Rngs(0)
        self.ih = nnx.Linear(WIDTH, gates * WIDTH, rngs=rngs)
        self.hh = nnx.Linear(WIDTH, gates * WIDTH, use_bias=bias, rngs=rngs)

    def __call__(self, x: Any, h: Any) -> tuple[Any, Any]:
        return self.ih(x), self.hh(h)


class Named(Dense):
    """The same layers under names that PyTorch does not know."""

    def __init__(self, gates: int, bias: bool = True) -> None:
        super().__init__(gates, bias)
        self.from_input, self.from_state = self.ih, self.hh
        del self.ih, self.hh

    def __call__(self, x: Any, h: Any) -> tuple[Any, Any]:
        return self.from_input(x), self.from_state(h)


class Parameters(nnx.Module):
    """Four parameters."""

    def __init__(self, gates: int, names: tuple[str, str] = ("b_ih", "b_hh")) -> None:
        rngs, self.names = nnx.Rngs(0), names
        self.w_x, self.w_h = (nnx.Param(rngs.params.normal((WIDTH, gates * WIDTH))) for _ in range(2))
        for name in names:
            setattr(self, name, nnx.Param(jnp.zeros(gates * WIDTH)))

    def __call__(self, x: Any, h: Any) -> tuple[Any, Any]:
        first, second = (getattr(self, name)[...] for name in self.names)
        return x @ self.w_x[...] + first, h @ self.w_h[...] + second


class Port(nnx.Module):
    def __init__(self, cell: Any, step: Callable[..., Any]) -> None:
        self.cell, self.step, self.head = cell, step, nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        state = (jnp.zeros((len(x), WIDTH), x.dtype),) * 2
        for i in range(x.shape[1]):
            state = self.step(*self.cell(x[:, i], state[0]), *state)
        return self.head(state[0])


def lstm(x: Any, hidden: Any, h: Any, c: Any) -> Any:
    i, f, g, o = jnp.split(x + hidden, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(x: Any, hidden: Any, h: Any, _: Any) -> Any:
    (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, -1), jnp.split(hidden, 3, -1)
    update = jax.nn.sigmoid(xz + hz)
    h = (1 - update) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + update * h
    return h, h


# PyTorch's model and the port's cell.
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nnx.Module], Callable[..., Any]]] = {
    "LSTM, dense": (lambda: Whole(nn.LSTM), lambda: Dense(4), lstm),
    "LSTM, dense with one bias": (lambda: Whole(nn.LSTM), lambda: Dense(4, bias=False), lstm),
    "LSTM, other names": (lambda: Whole(nn.LSTM), lambda: Named(4, bias=False), lstm),
    "LSTM, parameters": (lambda: Whole(nn.LSTM), lambda: Parameters(4), lstm),
    "LSTMCell, dense": (lambda: Stepwise(nn.LSTMCell), lambda: Dense(4), lstm),
    "LSTMCell, other names": (lambda: Stepwise(nn.LSTMCell), lambda: Named(4), lstm),
    "LSTMCell, parameters": (lambda: Stepwise(nn.LSTMCell), lambda: Parameters(4), lstm),
    "GRU, dense": (lambda: Whole(nn.GRU), lambda: Dense(3), gru),
    "GRUCell, dense": (lambda: Stepwise(nn.GRUCell), lambda: Dense(3), gru),
    "GRUCell, parameters": (lambda: Stepwise(nn.GRUCell), lambda: Parameters(3), gru),
    "own, dense": (lambda: Stepwise(OwnLSTMCell), lambda: Dense(4), lstm),
    "own, parameters": (lambda: Stepwise(OwnLSTMCell), lambda: Parameters(4), lstm),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", PAIRS)
def test_a_cell_of_the_ports_own_is_right(name: str) -> None:
    torch.manual_seed(0)
    model, cell, step = PAIRS[name]
    ours = model()
    report = parity.check(ours, parity.move(ours, Port(cell(), step), INPUTS), INPUTS, steps=1)
    assert report, str(report)


@pytest.mark.parametrize("kind", [nn.LSTMCell, OwnLSTMCell])
def test_two_biases_are_moved_bit_by_bit(kind: Any) -> None:
    """They are not added: the port has both."""
    torch.manual_seed(0)
    ours = Stepwise(kind)
    port = parity.move(ours, Port(Parameters(4), lstm), INPUTS)
    assert np.array_equal(port.cell.b_ih[...], ours.cell.bias_ih.detach().numpy())
    assert np.array_equal(port.cell.b_hh[...], ours.cell.bias_hh.detach().numpy())


def test_two_biases_whose_names_tell_nothing_are_refused() -> None:
    """Only their sum is used, so no output tells one from the other."""
    torch.manual_seed(0)
    ours = Stepwise(lambda *_: OwnLSTMCell(ends=("alpha", "omega")))
    with pytest.raises(UserError, match=r"say it with names=|Say it with names="):
        parity.move(ours, Port(Parameters(4, ("first", "last")), lstm), INPUTS)
