"""A Flax NNX network as the pure functions that `run_flax.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.run_flax import Functional, Listener, float64_attention, mode_keywords
from parity.taps import Tap
from ports.weights.nnx import modules, places

# Settings of layers that are fixed to a type: without them a layer computes in the type of its inputs and weights.
TYPES = {"dtype": None, "param_dtype": jnp.float64}
# Settings that drop values at random, and what drops none.
DROPPING = {"rate": 0.0, "dropout_rate": 0.0}


def promote(net: nnx.Module) -> nnx.Module:
    """A copy in float64, running statistics too, that computes in the type of its inputs and drops nothing."""
    graphdef, state = nnx.split(net)
    state = jax.tree.map(lambda a: jnp.array(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
    net = nnx.merge(graphdef, state)
    for _, module in nnx.iter_modules(net):
        library = type(module).__module__.startswith("flax.")
        for name, value in {**TYPES, **(DROPPING if library else {})}.items():
            if getattr(module, name, None) is not None:
                setattr(module, name, value)
    return net


@contextmanager
def tapped(net: nnx.Module, tap: Tap, names: Mapping[str, str] | None) -> Iterator[None]:
    """`tap` listens at the layers: their classes have their `__call__` replaced for the time of the call.

    Args:
        names: PyTorch's names by those in `net`; by default all modules but Sequentials, under their own.
    """
    found = modules(net)
    if names is None:
        names = {name: name for name, m in found.items() if name and not isinstance(m, nnx.Sequential)}
    named = {id(found[own]): name for own, name in names.items() if own in found}
    for module in found.values():
        if isinstance(module, nnx.RNN) and id(module.cell) in named:  # the cell's own calls stand inside a scan
            named[id(module)] = named.pop(id(module.cell))
    classes = {type(m) for m in found.values() if id(m) in named}
    originals = {cls: (cls.__call__, "__call__" in vars(cls)) for cls in classes}
    listener = Listener(tap)

    inside: list[int] = []

    def listening(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kw: Any) -> Any:
            if id(self) not in named or id(self) in inside:  # a subclass that calls its base class is entered once
                return original(self, *args, **kw)
            inside.append(id(self))
            try:
                return listener.around(named[id(self)], lambda *args, **kw: original(self, *args, **kw), args, kw)
            finally:
                inside.pop()

        return call

    for cls, (original, _) in originals.items():
        cls.__call__ = listening(original)
    try:
        yield
    finally:
        for cls, (original, own) in originals.items():
            if own:
                cls.__call__ = original
            else:
                del cls.__call__


def functional(
    net: nnx.Module, names: Mapping[str, str] | None = None, tensors: Mapping[str, str] | None = None
) -> Functional:
    """`net`, which is left as it was.

    Args:
        names: PyTorch's names of the modules that are recorded, by their own; by default all under their own.
        tensors: PyTorch's names of its tensors, by their own; by default all are taken, under their own.
    """
    net = nnx.clone(net)
    definitions = {}
    for train in (False, True):
        net.train() if train else net.eval()
        definitions[train], params, stats = nnx.split(net, nnx.Param, ...)

    def forward(params: Any, stats: Any, inputs: Any, keywords: Any, train: bool, tap: Tap) -> tuple[Any, Any]:
        copy = nnx.merge(definitions[train], params, stats, copy=True)
        call: Any = copy
        modes = mode_keywords(type(copy).__call__, train)
        with tapped(copy, tap, names), float64_attention():
            values = call(*inputs, **{**modes, **keywords})
        return values, nnx.state(copy, nnx.Not(nnx.Param))

    def to_hub(params: Any, stats: Any) -> dict[str, np.ndarray]:
        found = places(nnx.merge(definitions[True], params, stats), bare=tensors is not None)
        return {
            (tensors or {}).get(own, own): p.read() for own, p in found.items() if tensors is None or own in tensors
        }

    return Functional(params, stats, forward, to_hub)
