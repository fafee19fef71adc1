"""The types that a Flax network may compute in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ports.errors import UserError

DTYPES: dict[str, DTypeLike] = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}


def computing_dtype(name: str, dtype: str) -> DTypeLike:
    """Return the type of the activations of the network `name`.

    Raises:
        UserError: unknown dtype; float64 while JAX's x64 mode is off.
    """
    if dtype not in DTYPES:
        raise UserError(f"{name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{name}: float64 needs JAX's x64 mode: create and use it inside `with jax.enable_x64(True):`")
    return DTYPES[dtype]
