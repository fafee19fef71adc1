"""Lets JAX's random draws give fixed numbers: those that PyTorch's give in `draws_pytorch.py`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from parity.numerics.quantities import NORMAL, UNIFORM

# A key for what Linen's modules draw; where a stream has none of its own, `params` is taken.
STREAMS = ("params", "dropout")


def keys() -> dict[str, jax.Array]:
    """Return keys for every stream that a Linen module may ask for."""
    return {name: jax.random.key(i) for i, name in enumerate(STREAMS)}


def _bernoulli(key: Any, p: Any = 0.5, shape: Any = None, *args: Any, **kw: Any) -> Any:
    """Keep everything that has a chance to be kept.

    Where dropout does nothing, give the chance itself: a mask that is divided by it then does nothing.
    """
    if isinstance(p, float | int) and (found := COUNTED.get()) is not None:
        found[round(1 - p, 6)] += 1
    kept = jnp.asarray(p) > 0 if DROPS.get() else jnp.asarray(p)
    return kept if shape is None else jnp.broadcast_to(kept, shape)


def _uniform(key: Any, shape: Any = (), dtype: Any = float, minval: Any = 0.0, maxval: Any = 1.0, **kw: Any) -> Any:
    drawn = minval + (maxval - minval) * UNIFORM
    return jnp.broadcast_to(jnp.asarray(drawn, dtype), shape)


def _normal(key: Any, shape: Any = (), dtype: Any = float, **kw: Any) -> Any:
    return jnp.full(shape, NORMAL, dtype)


# How often values are dropped, by the part that is dropped, where somebody counts.
COUNTED: ContextVar[Counter[float] | None] = ContextVar("COUNTED", default=None)

# Whether dropout scales what it keeps; otherwise it does nothing.
DROPS: ContextVar[bool] = ContextVar("DROPS", default=True)


@contextmanager
def counted() -> Iterator[Counter[float]]:
    """Give a count of the draws that may drop values, by the part that they drop."""
    found: Counter[float] = Counter()
    token = COUNTED.set(found)
    try:
        yield found
    finally:
        COUNTED.reset(token)


def undropped(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a network's function in which dropout does nothing."""

    def run(*args: Any) -> Any:
        token = DROPS.set(False)
        try:
            return forward(*args)
        finally:
            DROPS.reset(token)

    return run


DRAWS: dict[str, Callable[..., Any]] = {"bernoulli": _bernoulli, "uniform": _uniform, "normal": _normal}


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Let this thread's draws give the same numbers. Other threads share the module, and get what JAX draws."""
    thread = threading.get_ident()
    originals: dict[str, Callable[..., Any]] = {name: getattr(jax.random, name) for name in DRAWS}

    def chosen(name: str) -> Callable[..., Any]:
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
