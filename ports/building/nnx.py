"""Makes NNX networks of any family."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ports.building.classes import network_class
from ports.building.dtypes import computing_dtype


class UncountedStream(nnx.RngStream):
    """Gives the same key at every draw. Counting them takes most of the time in which JAX traces a network."""

    def __call__(self) -> jax.Array:
        return self.key.get_value()


def one_key() -> nnx.Rngs:
    """Return random numbers for a network of which only the shapes are asked."""
    rngs: Any = nnx.Rngs(0)
    rngs.default = UncountedStream(jax.random.key(0), tag="default")
    return rngs


def create(spec: Any, *, seed: int | None = 0, dtype: str = "float32") -> nnx.Module:
    """Return a network with initial weights drawn from `seed`, in train mode.

    Args:
        spec: a description of some family (`ports.families`).
        seed: None leaves every weight at zero, for a network whose weights are written next.
        dtype: type of the activations and the weights; with bfloat16 the weights are float32.

    Raises:
        UserError: unknown dtype; float64 while JAX's x64 mode is off.
    """
    network, compute = network_class(spec, "nnx"), computing_dtype(spec.name, dtype)
    if seed is not None:
        return network(spec, dtype=compute, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: network(spec, dtype=compute, rngs=one_key())))
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state))
