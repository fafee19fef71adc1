"""Makes JAX's random draws give fixed numbers, the same as PyTorch's in `draws_pytorch.py`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from parity.numerics.quantities import NORMAL, UNIFORM

Draw = Callable[..., Any]
Shape = Sequence[int]

# A key for the draws of Linen's modules; a stream without its own key uses `params`.
STREAMS = ("params", "dropout")


def keys() -> dict[str, jax.Array]:
    """Return keys for every stream that a Linen module may ask for."""
    return {name: jax.random.key(i) for i, name in enumerate(STREAMS)}


def _bernoulli(
    key: ArrayLike, p: ArrayLike = 0.5, shape: Shape | None = None, *args: object, **kw: object
) -> jax.Array:
    """Keep everything that has a chance to be kept.

    If dropout does nothing, give the chance itself: a mask that is divided by the chance then does nothing.
    """
    if isinstance(p, float | int) and (found := COUNTED.get()) is not None:
        found[round(1 - p, 6)] += 1
    kept = jnp.asarray(p) > 0 if DROPS.get() else jnp.asarray(p)
    return kept if shape is None else jnp.broadcast_to(kept, shape)


def _uniform(
    key: ArrayLike,
    shape: Shape = (),
    dtype: DTypeLike = float,
    minval: ArrayLike = 0.0,
    maxval: ArrayLike = 1.0,
    **kw: object,
) -> jax.Array:
    if (found := COUNTED.get()) is not None:
        found[UNKNOWN] += 1
    drawn = minval + jnp.subtract(maxval, minval) * UNIFORM
    return jnp.broadcast_to(jnp.asarray(drawn, dtype), shape)


def _normal(key: ArrayLike, shape: Shape = (), dtype: DTypeLike = float, **kw: object) -> jax.Array:
    return jnp.full(shape, NORMAL, dtype)


UNKNOWN = -1.0  # the part that a uniform draw drops

# How often values are dropped, by the fraction that is dropped, while somebody counts.
COUNTED: ContextVar[Counter[float] | None] = ContextVar("COUNTED", default=None)

# Whether dropout scales the values that it keeps; otherwise it does nothing.
DROPS: ContextVar[bool] = ContextVar("DROPS", default=True)


@contextmanager
def counted() -> Iterator[Counter[float]]:
    """Give a count of the draws that may drop values, by the dropped fraction; uniform draws count as `UNKNOWN`."""
    found: Counter[float] = Counter()
    token = COUNTED.set(found)
    try:
        yield found
    finally:
        COUNTED.reset(token)


def undropped(forward: Draw) -> Draw:
    """Return a network's function in which dropout does nothing."""

    def run(*args: Any) -> Any:
        token = DROPS.set(False)
        try:
            return forward(*args)
        finally:
            DROPS.reset(token)

    return run


DRAWS: dict[str, Draw] = {"bernoulli": _bernoulli, "uniform": _uniform, "normal": _normal}


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Make this thread's draws give the same numbers. Other threads share the module, and get JAX's real draws."""
    thread = threading.get_ident()
    originals: dict[str, Draw] = {name: getattr(jax.random, name) for name in DRAWS}

    def chosen(name: str) -> Draw:
        def draw(*args: Any, **kw: Any) -> Any:
            ours = threading.get_ident() == thread
            return (DRAWS if ours else originals)[name](*args, **kw)

        return draw

    for name in DRAWS:
        setattr(jax.random, name, chosen(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(jax.random, name, original)
