"""PyTorch's BatchNorm, linear and recurrent layers in Linen. Read beside nnx.py and pytorch.py.

The running variance is unbiased, the variance is computed in two passes, and statistics are float32 at least.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.initializers import normal
from jax.typing import DTypeLike

from ports.errors import UserError
from ports.layers.initializers import torch_bias, torch_kernel, torch_recurrent

Dtype = DTypeLike | None  # None: the type of the inputs and the parameters
AnyArray = jax.Array | np.ndarray  # a network takes numpy's arrays too


def param_dtype(dtype: Dtype) -> np.dtype:
    """The type of the parameters of a layer that computes in `dtype`: float32 at least."""
    return jnp.promote_types(jnp.float32 if dtype is None else dtype, jnp.float32)


class BatchNorm(nn.BatchNorm):
    """PyTorch's BatchNorm over the last axis; `use_running_average` chooses the mode of each call.

    Computes in float32 at least, whatever the type of the input, and returns the input's type.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        eval_mode = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        if mask is not None:
            raise NotImplementedError("BatchNorm: a mask has no counterpart in PyTorch")
        shape, at_least_float32 = x.shape[-1:], jnp.promote_types(self.param_dtype, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, at_least_float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, at_least_float32)
        count = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if eval_mode:
            mean, var = running_mean.value, running_var.value
        else:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if n == 1:
                raise UserError(one_value_message(x.shape))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            if not self.is_initializing():
                old, new = self.momentum, 1 - self.momentum
                running_mean.value = (old * running_mean.value + new * mean).astype(running_mean.value.dtype)
                unbiased = new * (n / (n - 1)) * var
                running_var.value = (old * running_var.value + unbiased).astype(running_var.value.dtype)
                count.value += 1
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(dtype)


def one_value_message(shape: tuple[int, ...]) -> str:
    return f"BatchNorm in train mode: got input {shape}, one value a channel; expected two or more (a larger batch)"


def linear(in_features: int, out_features: int, *, dtype: Dtype) -> nn.Dense:
    """A linear layer with PyTorch's initial distributions."""
    return nn.Dense(
        out_features,
        kernel_init=torch_kernel,
        bias_init=torch_bias(in_features),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
    )


class Conv1D(nn.Dense):
    """A linear layer whose weight is (in, out) in PyTorch too, as in transformers' class of this name."""


def conv1d(out_features: int, deviation: float = 0.02, *, dtype: Dtype) -> Conv1D:
    """A `Conv1D` with normally distributed weights of this deviation, and biases of zero."""
    return Conv1D(out_features, kernel_init=normal(deviation), dtype=dtype, param_dtype=param_dtype(dtype))


def gates(count: int, hidden_features: int, *, dtype: Dtype) -> nn.Dense:
    """The linear layer of all gates of a cell, with PyTorch's initial distributions."""
    init = torch_recurrent(hidden_features)
    options: Any = {"dtype": dtype, "param_dtype": param_dtype(dtype)}
    return nn.Dense(count * hidden_features, kernel_init=init, bias_init=init, **options)


class LSTMCell(nn.RNNCellBase):
    """One step of `torch.nn.LSTM`. In contrast, Linen's cells have no second bias, and one layer for each gate."""

    hidden_features: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.dense_i = gates(4, self.hidden_features, dtype=self.dtype)
        self.dense_h = gates(4, self.hidden_features, dtype=self.dtype)

    def __call__(self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array) -> tuple[Any, jax.Array]:
        c, h = carry
        i, f, g, o = jnp.split(self.dense_i(inputs) + self.dense_h(h), 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * nn.tanh(g)
        h = nn.sigmoid(o) * nn.tanh(c)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: object, input_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), param_dtype(self.dtype))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        return 1


class GRUCell(nn.RNNCellBase):
    """One step of `torch.nn.GRU`: the reset gate multiplies the second bias of the new gate, too."""

    hidden_features: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.dense_i = gates(3, self.hidden_features, dtype=self.dtype)
        self.dense_h = gates(3, self.hidden_features, dtype=self.dtype)

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = carry
        input_r, input_z, input_n = jnp.split(self.dense_i(inputs), 3, axis=-1)
        hidden_r, hidden_z, hidden_n = jnp.split(self.dense_h(h), 3, axis=-1)
        r, z = nn.sigmoid(input_r + hidden_r), nn.sigmoid(input_z + hidden_z)
        n = nn.tanh(input_n + r * hidden_n)
        h = (1 - z) * n + z * h
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: object, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.hidden_features), param_dtype(self.dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1


class Recurrent(nn.Module):
    """A recurrent layer of one level over texts (batch, length, features); its outputs after a text are zero."""

    hidden_features: int
    bidirectional: bool = False
    dtype: Dtype = jnp.float32

    def cell(self) -> LSTMCell | GRUCell:
        """Return the cell of one direction."""
        raise NotImplementedError

    def setup(self) -> None:
        self.forward_rnn = nn.RNN(self.cell(), time_major=False)
        # It begins with the last token of each text, and each output is at the position of its token.
        if self.bidirectional:
            self.backward_rnn = nn.RNN(self.cell(), time_major=False, reverse=True, keep_order=True)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        runs: list[Any] = [self.forward_rnn, *([self.backward_rnn] if self.bidirectional else [])]
        given = [run(x, seq_lengths=lengths) for run in runs]
        real = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(real[..., None], jnp.concatenate(given, axis=-1), 0).astype(x.dtype)


class LSTM(Recurrent):
    """`torch.nn.LSTM` of one level, in one direction or in both."""

    def cell(self) -> LSTMCell:
        return LSTMCell(self.hidden_features, self.dtype)


class GRU(Recurrent):
    """`torch.nn.GRU` of one level, in one direction or in both."""

    def cell(self) -> GRUCell:
        return GRUCell(self.hidden_features, self.dtype)
