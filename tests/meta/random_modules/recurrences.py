"""Recurrences: the libraries' cells, and a gated mean that models write themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

from .block import SEQUENCE, Block, in_linen
from .choices import Choices


class TorchLSTM(nn.Module):
    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.rnn = nn.LSTM(s.width, s.width, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class LinenRnn(linen.Module):
    """A cell over the positions."""

    s: Choices
    cell: Any

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        run: Any = linen.RNN(self.cell(self.s.width, parent=None), name="rnn")
        return run(x)


class NnxRnn(nnx.Module):
    def __init__(self, cell: Any, s: Choices, rngs: nnx.Rngs) -> None:
        self.rnn: Any = nnx.RNN(cell(s.width, s.width, rngs=rngs))

    def __call__(self, x: Any) -> Any:
        return self.rnn(x)


class TorchGRU(nn.Module):
    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.rnn = nn.GRU(s.width, s.width, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class TorchDecay(nn.Module):
    """A state that forgets by a learned part and takes in by a gate; pinned, it is float32."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width, bias=s.bias)
        self.decay, self.s = nn.Parameter(torch.randn(s.width)), s

    def forward(self, x: Any) -> Any:
        taken = torch.sigmoid(self.gate(x)) * self.value(x)
        taken = taken.float() if self.s.pinned[0] else taken
        kept, state, out = torch.sigmoid(self.decay).to(taken.dtype), torch.zeros_like(taken[:, 0]), []
        for t in range(x.shape[1]):
            state = kept * state + (1 - kept) * taken[:, t]
            out.append(state)
        return torch.stack(out, 1).to(x.dtype)


class NnxDecay(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(s.width, s.width, rngs=rngs)
        self.value = nnx.Linear(s.width, s.width, use_bias=s.bias, rngs=rngs)
        self.decay, self.s = nnx.Param(jnp.zeros(s.width)), s

    def __call__(self, x: Any) -> Any:
        return jax_decayed(self.gate(x), self.value(x), self.decay[...], self.s)


class LinenDecay(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        gate = linen.Dense(self.s.width, name="gate")(x)
        value = linen.Dense(self.s.width, use_bias=self.s.bias, name="value")(x)
        return jax_decayed(gate, value, self.param("decay", linen.initializers.normal(), (self.s.width,)), self.s)


def jax_decayed(gate: Any, value: Any, decay: Any, s: Choices) -> Any:
    taken = jax.nn.sigmoid(gate) * value
    wide = taken.astype(jnp.float32) if s.pinned[1] else taken
    kept = jax.nn.sigmoid(decay).astype(wide.dtype)

    def step(state: Any, x: Any) -> Any:
        state = kept * state + (1 - kept) * x
        return state, state

    _, out = jax.lax.scan(step, jnp.zeros_like(wide[:, 0]), wide.swapaxes(0, 1))
    return out.swapaxes(0, 1).astype(taken.dtype)


RECURRENCES: dict[str, Block] = {
    "LSTM": Block(
        TorchLSTM,
        lambda s, rngs: NnxRnn(nnx.OptimizedLSTMCell, s, rngs),
        lambda s, name, x, train: LinenRnn(s, linen.OptimizedLSTMCell, name=name)(x, train),
        SEQUENCE,
    ),
    # NNX's GRU has no bias at the hidden state.
    "GRU": Block(TorchGRU, None, lambda s, name, x, train: LinenRnn(s, linen.GRUCell, name=name)(x, train), SEQUENCE),
    "gated mean": Block(TorchDecay, NnxDecay, in_linen(LinenDecay), SEQUENCE),
}
