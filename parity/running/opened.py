"""Makes calls of layers visible if a Flax model runs them inside `remat` or a `scan` over layers.

Inside such a transformation a layer is traced separately, and its values cannot be used outside. While a
check runs, `jax.checkpoint` therefore gives the function as it is, and a `jax.lax.scan` over a stack of layers is a
loop over them. Both compute the same. Only this thread sees it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

CHECKPOINTS = ((jax, "checkpoint"), (jax, "remat"))


@contextmanager
def opened(lengths: Collection[int]) -> Iterator[None]:
    """Take `jax.checkpoint` away, and run scans as loops.

    Args:
        lengths: of the stacks of layers; a scan of another length stays as it is.
    """
    thread = threading.get_ident()
    originals = [(owner, name, getattr(owner, name)) for owner, name in (*CHECKPOINTS, (jax.lax, "scan"))]

    def replaced(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        new = _scan(original, lengths) if name == "scan" else _plain

        def call(*args: Any, **kw: Any) -> Any:
            return (new if threading.get_ident() == thread else original)(*args, **kw)

        return call

    try:
        for owner, name, original in originals:
            setattr(owner, name, replaced(original, name))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _plain(function: Callable[..., Any] | None = None, **_: object) -> Any:
    """Replace `jax.checkpoint`, called with its function or only with settings."""
    return (lambda given: given) if function is None else function


def _scan(original: Callable[..., Any], lengths: Collection[int]) -> Callable[..., Any]:
    def scan(f: Callable[..., Any], init: Any, xs: Any = None, length: int | None = None, **kw: Any) -> Any:
        leaves = jax.tree.leaves(xs)
        steps = length if length is not None else len(leaves[0]) if leaves else 0
        if steps not in lengths:
            return original(f, init, xs, length, **kw)
        carry, ys = init, []
        order = range(steps)[::-1] if kw.get("reverse") else range(steps)
        for i in order:
            carry, y = f(carry, jax.tree.map(lambda a, i=i: a[i], xs))
            ys.append(y)
        return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *(ys[::-1] if kw.get("reverse") else ys))

    return scan
