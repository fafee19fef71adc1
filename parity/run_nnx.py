"""A Flax NNX network as the pure functions that `run_flax.py` runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parity.run_flax import Functional, Record
from ports.weights import read
from ports.weights.nnx import modules


def promote(net: nnx.Module) -> nnx.Module:
    """A copy in float64, running statistics too, that computes in the type of its inputs."""
    graphdef, state = nnx.split(net)
    state = jax.tree.map(lambda a: jnp.array(a, jnp.float64 if jnp.issubdtype(a.dtype, jnp.floating) else None), state)
    net = nnx.merge(graphdef, state)
    for module in modules(net).values():
        if getattr(module, "dtype", None) is not None:
            module.dtype = None  # pyright: ignore[reportAttributeAccessIssue]
    return net


@contextmanager
def recorded(net: nnx.Module) -> Iterator[Record]:
    """Input and output of every layer, under its PyTorch name, in the order of completion.

    The classes of the network's layers have their `__call__` replaced for the time of the call.
    """
    record: Record = {}
    named = {id(m): name for name, m in modules(net).items() if name and not isinstance(m, nnx.Sequential)}
    classes = {type(m) for m in modules(net).values() if id(m) in named}
    originals = {cls: (cls.__call__, "__call__" in vars(cls)) for cls in classes}

    def keep(original: Any) -> Any:
        def call(self: nnx.Module, x: Any, *args: Any, **kw: Any) -> Any:
            output = original(self, x, *args, **kw)
            if id(self) in named:
                record[named[id(self)]] = (x, output)
            return output

        return call

    for cls, (original, _) in originals.items():
        cls.__call__ = keep(original)
    try:
        yield record
    finally:
        for cls, (original, own) in originals.items():
            if own:
                cls.__call__ = original
            else:
                del cls.__call__


def functional(net: nnx.Module) -> Functional:
    """`net`, which is left as it was."""
    net = nnx.clone(net)
    definitions = {}
    for train in (False, True):
        net.train() if train else net.eval()
        definitions[train], params, stats = nnx.split(net, nnx.Param, ...)

    def forward(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[Any, Record, Any]:
        copy = nnx.merge(definitions[train], params, stats, copy=True)
        with recorded(copy) as record:
            values = copy(images)  # pyright: ignore[reportCallIssue]
        return values, dict(record), nnx.state(copy, nnx.Not(nnx.Param))

    return Functional(params, stats, forward, lambda params, stats: read(nnx.merge(definitions[True], params, stats)))
