"""Recurrent cells that a port writes itself, with every mistake in their gates planted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from torch import nn

from .planted import Case, images, moved
from .sequences import Recurrent


class OwnCell(nnx.Module):
    """A cell of the port's own (3 to 4 features) with two dense layers, as many write it.

    Args:
        gates: how many the cell has.
        step: the new state, from the gates at the input, the layer at the state, and the state (h, c).
    """

    def __init__(self, gates: int, step: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.ih, self.hh = (nnx.Linear(n, gates * 4, rngs=rngs) for n in (3, 4))
        self.step = step

    def __call__(self, x: Any, state: Any) -> Any:
        return self.step(self.ih(x), self.hh, state)


class OwnRecurrent(nnx.Module):
    """`Recurrent` with a cell of the port's own."""

    def __init__(self, cell: OwnCell) -> None:
        self.cell, self.head = cell, nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        state, out = (jnp.zeros((len(x), 4), x.dtype),) * 2, []
        for i in range(x.shape[1]):
            state = self.cell(x[:, i], state)
            out.append(state[0])
        return self.head(jnp.stack(out, 1))


def lstm_step(x: Any, hh: Any, state: Any, order: str = "ifgo") -> Any:
    """Return the new state of an LSTM whose gates have this order; PyTorch's is ifgo."""
    named = dict(zip(order, jnp.split(x + hh(state[0]), 4, -1), strict=True))
    cell = jax.nn.sigmoid(named["f"]) * state[1] + jax.nn.sigmoid(named["i"]) * jnp.tanh(named["g"])
    return jax.nn.sigmoid(named["o"]) * jnp.tanh(cell), cell


def gru_step(
    x: Any, hh: Any, state: Any, update_first: bool = False, inverted: bool = False, reset_first: bool = False
) -> Any:
    """Return the new state of a GRU.

    Args:
        update_first: whether the update gate stands before the reset gate.
        inverted: whether the update gate lets the new state in.
        reset_first: whether the reset gate multiplies the old state itself.
    """
    h = state[0]
    (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, -1), jnp.split(hh(h), 3, -1)
    reset, update = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    reset, update = (update, reset) if update_first else (reset, update)
    new = jnp.tanh(xn + (jnp.split(hh(reset * h), 3, -1)[2] if reset_first else reset * hn))
    h = (1 - update) * h + update * new if inverted else (1 - update) * new + update * h
    return h, h


def own_cell(right: Any, gates: int, step: Callable[..., Any], **wrong: Any) -> Callable[[], tuple[Any, ...]]:
    """A recurrent layer of PyTorch, and a cell of the port's own."""
    step = partial(step, **wrong)
    return lambda: moved(Recurrent(right(3, 4, batch_first=True)), OwnRecurrent(OwnCell(gates, step)), images(2, 5, 3))


RECURRENT_CELLS = (
    Case("lstm-input-forget-exchanged", own_cell(nn.LSTM, 4, lstm_step, order="figo"), "rnn"),
    Case("lstm-cell-output-exchanged", own_cell(nn.LSTM, 4, lstm_step, order="ifog"), "rnn"),
    Case("gru-reset-update-exchanged", own_cell(nn.GRU, 3, gru_step, update_first=True), "rnn"),
    Case("gru-update-inverted", own_cell(nn.GRU, 3, gru_step, inverted=True), "rnn"),
    Case("gru-reset-first", own_cell(nn.GRU, 3, gru_step, reset_first=True), "rnn"),
)
