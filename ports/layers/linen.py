"""PyTorch's BatchNorm and linear layers in Linen. Read beside nnx.py and pytorch.py.

The running variance is unbiased, the variance is computed in two passes, and statistics are float32 at least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.initializers import normal
from jax.typing import DTypeLike

from ports.errors import UserError
from ports.layers.initializers import torch_bias, torch_kernel

Dtype = DTypeLike | None  # None: the type of the inputs and parameters
AnyArray = jax.Array | np.ndarray  # a network takes numpy's arrays too


def param_dtype(dtype: Dtype) -> np.dtype:
    """The type of the parameters of a layer that computes in `dtype`: float32 at least."""
    return jnp.promote_types(jnp.float32 if dtype is None else dtype, jnp.float32)


class BatchNorm(nn.BatchNorm):
    """PyTorch's BatchNorm over the last axis; `use_running_average` chooses the mode of each call.

    Computes in float32 at least, whatever the type of the input, and gives the input's type back.
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
    """A linear layer whose weight is (in, out) in PyTorch too, as transformers' class of this name has it."""


def conv1d(out_features: int, deviation: float = 0.02, *, dtype: Dtype) -> Conv1D:
    """A `Conv1D` with normally distributed weights of this deviation, and biases of zero."""
    return Conv1D(out_features, kernel_init=normal(deviation), dtype=dtype, param_dtype=param_dtype(dtype))
