"""Attention and recurrence that other files plant mistakes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import linen, nnx
from torch import Tensor, nn

from .planted import images, moved


class Attention(nn.Module):
    """PyTorch's attention of a sequence to itself, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    """A recurrent layer of PyTorch (3 to 4 features), and a linear layer."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class NNXAttention(nnx.Module):
    """`Attention` in NNX."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.attention(x))


PADDED = np.arange(5) >= np.array([3, 4])[:, None]
CAUSAL = ~np.tril(np.ones((5, 5), bool))


class Masked(Attention):
    """Attention with a mask of padding, and one of what comes later."""

    padding, future = True, False

    def forward(self, x: Tensor) -> Tensor:
        masks: Any = {"key_padding_mask": torch.from_numpy(PADDED)} if self.padding else {}
        masks |= {"attn_mask": torch.from_numpy(CAUSAL)} if self.future else {}
        return self.head(self.attention(x, x, x, need_weights=False, **masks)[0])


class Future(Masked):
    """Attention that is causal."""

    padding, future = False, True


def attends(right: Any, mask: Any, factor: float = 1.0) -> Callable[[], tuple[Any, ...]]:
    """The port's mask; `factor` scales its queries."""

    class Scaled(nnx.MultiHeadAttention):
        def __call__(self, x: Any, *_: Any, **kw: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            query: Any = self.query
            for variable in (query.kernel, query.bias):
                variable.set_value(variable.get_value() * factor)
            return super().__call__(x, mask=mask, **kw)

    def make() -> tuple[Any, ...]:
        flax = NNXAttention()
        flax.attention = Scaled(2, 8, decode=False, rngs=nnx.Rngs(0))
        return moved(right(), flax, images(2, 5, 8))

    return make


def attended(x: Any, **settings: Any) -> Any:
    q = x[:, None]
    return F.scaled_dot_product_attention(q, q, q, **settings)[:, 0]


def attending(x: Any, scale: float | None = None, mask: Any = True) -> Any:
    scores = x @ x.swapaxes(1, 2) * (x.shape[-1] ** -0.5 if scale is None else scale)
    return jax.nn.softmax(jnp.where(mask, scores, -1e300), axis=-1) @ x


BAND = np.abs(np.arange(5)[:, None] - np.arange(5)) < 2
LOWER = np.tril(np.ones((5, 5), bool))
BAND_TORCH, LOWER_TORCH = torch.from_numpy(BAND), torch.from_numpy(LOWER)


def bidirectional(change: Any) -> Any:
    """A bidirectional LSTM whose two directions are joined by `change`."""

    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    class Flax(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            ahead: Any = linen.RNN(linen.OptimizedLSTMCell(4))
            back: Any = linen.RNN(linen.OptimizedLSTMCell(4), reverse=True)
            return linen.Dense(3)(change(ahead(x), back(x)))

    def make() -> tuple[Any, ...]:
        x = images(2, 5, 3)
        # What joins the directions is what may be wrong: computing cannot tell which is which.
        names = {"lstm@l0": "OptimizedLSTMCell_0", "lstm@l0_reverse": "OptimizedLSTMCell_1"}
        return moved(Torch(), (Flax(), Flax().init(jax.random.key(0), x)), x, options={"names": names})

    return make
