"""Makes Linen networks of any family."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ports.building.classes import network_class
from ports.building.dtypes import computing_dtype
from ports.families import example_size, inputs_of
from ports.family import Input


def create(spec: Any, *, seed: int | None = 0, dtype: str = "float32") -> tuple[nn.Module, Any]:
    """Return a module and its variables (`params`, `batch_stats`), the weights drawn from `seed`.

    Args:
        spec: a description of some family (`ports.families`).
        seed: None leaves every weight at zero, for a network whose weights are written next.
        dtype: type of the activations and the weights; with bfloat16 the weights are float32.

    Raises:
        UserError: unknown dtype; float64 while JAX's x64 mode is off.
    """
    compute = computing_dtype(spec.name, dtype)
    module = network_class(spec, "linen")(spec, dtype=compute)
    inputs = [_zeros(one, compute) for one in inputs_of(spec, 1, example_size(spec))]
    if seed is not None:
        return module, initial(module, jax.random.key(seed), *inputs)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return module, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


@partial(jax.jit, static_argnums=0)
def initial(module: nn.Module, key: Any, *inputs: Any) -> Any:
    """Compiled once per network, while `jax.jit(module.init)` would be compiled again at every call."""
    return module.init(key, *inputs)


def _zeros(one: Input, dtype: Any) -> jax.Array:
    """An input in Flax's layout: images have their channels last."""
    shape = one.shape if len(one.shape) < 4 else (one.shape[0], *one.shape[2:], one.shape[1])
    return jnp.zeros(shape, dtype if one.below is None else jnp.int32)
