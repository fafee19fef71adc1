"""PyTorch's BatchNorm, linear and recurrent layers in NNX. Read beside linen.py and pytorch.py.

The running variance is unbiased, the variance is computed in two passes, and statistics are float32 at least.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.initializers import normal
from jax.typing import DTypeLike

from ports.errors import UserError
from ports.layers.initializers import torch_bias, torch_kernel, torch_recurrent

Dtype = DTypeLike | None  # None: the type of the inputs and the parameters
AnyArray = jax.Array | np.ndarray  # a network takes numpy's arrays too


def param_dtype(dtype: Dtype) -> np.dtype:
    """The type of the parameters of a layer that computes in `dtype`: float32 at least."""
    return jnp.promote_types(jnp.float32 if dtype is None else dtype, jnp.float32)


class BatchNorm(nnx.BatchNorm):
    """PyTorch's BatchNorm over the last axis; `train()` and `eval()` on any module above it choose the mode.

    Computes in float32 at least, whatever the type of the input, and returns the input's type.
    """

    def __init__(
        self, num_features: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs, **options: Any
    ) -> None:
        super().__init__(num_features, momentum=0.9, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs, **options)
        dtype = jnp.promote_types(param_dtype, jnp.float32)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **_: object) -> jax.Array:
        eval_mode = self.use_running_average if use_running_average is None else use_running_average
        assert self.scale is not None
        assert self.bias is not None
        dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if eval_mode:
            mean, var = self.mean[...], self.var[...]
        else:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if n == 1:
                raise UserError(one_value_message(x.shape))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            old, new = self.momentum, 1 - self.momentum
            self.mean[...] = (old * self.mean[...] + new * mean).astype(self.mean.dtype)
            unbiased = new * (n / (n - 1)) * var
            self.var[...] = (old * self.var[...] + unbiased).astype(self.var.dtype)
            self.num_batches_tracked[...] += 1
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(dtype)


def one_value_message(shape: tuple[int, ...]) -> str:
    return f"BatchNorm in train mode: got input {shape}, one value a channel; expected two or more (a larger batch)"


def linear(in_features: int, out_features: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with PyTorch's initial distributions."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=torch_kernel,
        bias_init=torch_bias(in_features),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


class Conv1D(nnx.Linear):
    """A linear layer whose weight is (in, out) in PyTorch too, as in transformers' class of this name.

    Args:
        deviation: of the initial weights, which are normally distributed. Biases are zero.
    """

    def __init__(
        self, in_features: int, out_features: int, deviation: float = 0.02, *, dtype: Dtype, rngs: nnx.Rngs
    ) -> None:
        init, params = normal(deviation), param_dtype(dtype)
        super().__init__(in_features, out_features, kernel_init=init, dtype=dtype, param_dtype=params, rngs=rngs)


class LSTMCell(nnx.OptimizedLSTMCell):
    """One step of `torch.nn.LSTM`: Flax's cell, and PyTorch's second bias."""

    def __init__(self, in_features: int, hidden_features: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        init, params = torch_recurrent(hidden_features), param_dtype(dtype)
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": params, "bias_init": init, "rngs": rngs}
        super().__init__(in_features, hidden_features, kernel_init=init, recurrent_kernel_init=init, **options)
        self.dense_i = nnx.Linear(in_features, 4 * hidden_features, kernel_init=init, **options)


class GRUCell(nnx.GRUCell):
    """One step of `torch.nn.GRU`: Flax's cell, and PyTorch's second bias, which the reset gate multiplies."""

    def __init__(self, in_features: int, hidden_features: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        init, params = torch_recurrent(hidden_features), param_dtype(dtype)
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": params, "bias_init": init, "rngs": rngs}
        super().__init__(in_features, hidden_features, kernel_init=init, recurrent_kernel_init=init, **options)
        self.dense_h = nnx.Linear(hidden_features, 3 * hidden_features, kernel_init=init, **options)


def zero_state(cell: LSTMCell | GRUCell, x: jax.Array) -> Any:
    """Return the initial state of a cell; for an LSTM, two arrays."""
    dtype = jnp.promote_types(x.dtype, cell.dense_h.kernel.dtype)
    zeros = jnp.zeros((x.shape[0], cell.hidden_features), dtype)
    return (zeros, zeros) if isinstance(cell, LSTMCell) else zeros


class Recurrent(nnx.Module):
    """A recurrent layer of one level over texts (batch, length, features); its outputs after a text are zero."""

    cell: type[LSTMCell] | type[GRUCell]

    def __init__(
        self, in_features: int, hidden_features: int, bidirectional: bool = False, *, dtype: Dtype, rngs: nnx.Rngs
    ) -> None:
        def run(reverse: bool) -> nnx.RNN:
            cell = self.cell(in_features, hidden_features, dtype=dtype, rngs=rngs)
            return nnx.RNN(cell, time_major=False, reverse=reverse, keep_order=reverse, rngs=False)

        self.forward_rnn = run(reverse=False)
        # It begins with the last token of each text, and each output is at the position of its token.
        self.backward_rnn = run(reverse=True) if bidirectional else None

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        runs: list[Any] = [self.forward_rnn, *([] if self.backward_rnn is None else [self.backward_rnn])]
        given = [run(x, initial_carry=zero_state(run.cell, x), seq_lengths=lengths) for run in runs]
        real = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(real[..., None], jnp.concatenate(given, axis=-1), 0).astype(x.dtype)


class LSTM(Recurrent):
    """`torch.nn.LSTM` of one level, in one direction or in both."""

    cell = LSTMCell


class GRU(Recurrent):
    """`torch.nn.GRU` of one level, in one direction or in both."""

    cell = GRUCell
