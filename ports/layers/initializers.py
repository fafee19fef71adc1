"""PyTorch's initial distributions, for Flax."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal, variance_scaling
from jax.typing import DTypeLike

kaiming_fan_out = variance_scaling(2.0, "fan_out", "normal")
"""`torch.nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")`: torchvision's for convolutions."""

kaiming_fan_in = variance_scaling(2.0, "fan_in", "uniform")
"""`torch.nn.init.kaiming_uniform_(mode="fan_in", nonlinearity="relu")`: segmentation_models_pytorch's for decoders."""

torch_kernel = variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for the weights of convolutions and linear layers: uniform in ±1/√fan_in."""

torch_embedding = normal(1.0)
"""PyTorch's default for embeddings."""

torch_attention = variance_scaling(0.5, "fan_avg", "uniform")
"""Of query, key and value in `nn.MultiheadAttention`: Xavier's uniform over the three together."""


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default for the biases of convolutions and linear layers: uniform in ±1/√fan_in."""

    def draw(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike | None = None, out_sharding: object = None
    ) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32 if dtype is None else dtype, -1, 1) / fan_in**0.5

    return draw


def torch_recurrent(hidden: int) -> Initializer:
    """PyTorch's default for all weights and biases of `nn.LSTM` and `nn.GRU`: uniform in ±1/√hidden."""
    return torch_bias(hidden)
