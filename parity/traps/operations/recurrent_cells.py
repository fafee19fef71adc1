"""Known mistakes in recurrent cells that a port writes itself. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.planting import Values
from parity.traps.trap import Trap


def _gates(count: int, change: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Callable[..., Any]:
    """The rows of all weights changed, gate by gate."""

    def rows(tensor: Any) -> Any:
        return torch.cat([*change(tensor.chunk(count))]) if isinstance(tensor, Tensor) else tensor

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        if function.__name__.endswith("_cell"):
            return function(*args[:2], *map(rows, args[2:]), **kw)
        return function(*([*map(rows, arg)] if isinstance(arg, list) else arg for arg in args), **kw)

    return plant


def _reset_first(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
    """A GRU that resets the old state before the product with it; of one level and one direction."""
    if function.__name__ == "gru_cell":
        return _step(args[0], args[1], args[2:])
    x, state, weights, biased, levels, _, _, both, first = args
    if not biased or levels > 1 or both:
        return None
    states = [state[0]]
    for step in x.unbind(1 if first else 0):
        states.append(_step(step, states[-1], weights))
    return torch.stack(states[1:], 1 if first else 0), states[-1][None]


def _step(x: Tensor, state: Tensor, weights: Sequence[Any]) -> Tensor:
    (w_in, w_state, b_in, b_state) = (tensor.chunk(3) for tensor in weights)
    reset, update = (
        torch.sigmoid(F.linear(x, w_in[i], b_in[i]) + F.linear(state, w_state[i], b_state[i])) for i in (0, 1)
    )
    new = torch.tanh(F.linear(x, w_in[2], b_in[2]) + F.linear(reset * state, w_state[2], b_state[2]))
    return (1 - update) * new + update * state


RECURRENT_CELLS = (
    Trap(
        "lstm-input-forget-exchanged",
        "between",
        ("lstm", "lstm_cell"),
        _gates(4, lambda gates: [gates[1], gates[0], *gates[2:]]),
        "the input gate and the forget gate are exchanged: PyTorch's gates are input, forget, cell and output",
        "unpack the gates as i, f, g, o",
        "torch.nn.LSTM",
    ),
    Trap(
        "lstm-cell-output-exchanged",
        "between",
        ("lstm", "lstm_cell"),
        _gates(4, lambda gates: [*gates[:2], gates[3], gates[2]]),
        "the output gate stands before the cell gate: PyTorch's gates are input, forget, cell and output",
        "unpack the gates as i, f, g, o",
        "torch.nn.LSTM",
    ),
    Trap(
        "gru-reset-update-exchanged",
        "between",
        ("gru", "gru_cell"),
        _gates(3, lambda gates: [gates[1], gates[0], gates[2]]),
        "the update gate stands before the reset gate: PyTorch's gates are reset, update and new",
        "unpack the gates as r, z, n",
        "torch.nn.GRU",
    ),
    Trap(
        "gru-update-inverted",
        "between",
        ("gru", "gru_cell"),
        _gates(3, lambda gates: [gates[0], -gates[1], gates[2]]),
        "the update gate z lets the new state in; PyTorch's keeps the old one: h = (1 - z) * n + z * h",
        "write h = (1 - z) * n + z * h",
        "torch.nn.GRU",
    ),
    Trap(
        "gru-reset-first",
        "between",
        ("gru", "gru_cell"),
        _reset_first,
        "the reset gate multiplies the old state; PyTorch's multiplies the product with it: r * (h U + b)",
        "write n = tanh(x W + c + r * (h U + b))",
        "torch.nn.GRU",
    ),
)
