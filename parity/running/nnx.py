"""A Flax NNX network as the pure functions that `flax.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from parity.numerics.calls import Call
from parity.numerics.tables import recomputed
from parity.running.draws_jax import DROPS, fixed_draws
from parity.running.flax import (
    Functional,
    Listener,
    by_module,
    float64_attention,
    layer_names,
    placed,
    stack_lengths,
)
from parity.running.opened import opened
from parity.running.raised import raising
from parity.running.taps import Tap
from ports.weights.live.nnx import modules, places

# The types of a run of a model that has its own policy for narrow types: the types that it names.
OWN_TYPES = "own"

# What becomes of type settings of layers, by the type of the run. With None a layer computes in the type of its inputs
# and weights.
TYPES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "float64": {"dtype": lambda _: None, "param_dtype": lambda _: jnp.float64},
    "float32": {
        "dtype": lambda old: None if old is None or jnp.dtype(old) == np.float64 else old,
        "param_dtype": lambda _: jnp.float32,
    },
    "bfloat16": {"dtype": lambda _: jnp.bfloat16, "param_dtype": lambda _: jnp.bfloat16},
    OWN_TYPES: {},
}
# The complex type of a run; no complex type is as narrow as bfloat16.
COMPLEX = {"float64": jnp.complex128}
# Types that a model with a policy of its own names; a setting may be numpy's class or its dtype.
NARROW = (jnp.bfloat16, jnp.float16)
# The classes of functions that `jax.jit` and `nnx.jit` return.
JITTED = (type(jax.jit(jnp.sin)), type(nnx.jit(jnp.sin)))
# The attribute of a layer that holds the names under which its calls are recorded.
MARK = "_recorded_under"
# Settings of the libraries' layers that drop values, for runs in which dropout does nothing.
DROPPING = {"rate": 0.0, "dropout_rate": 0.0}


def settings(module: Any, dtype: str) -> dict[str, Any]:
    """The settings of a layer that make it compute in a type (`verdict.precision.POLICIES`)."""
    library = type(module).__module__.startswith("flax.")
    chosen = TYPES[dtype] | ({} if DROPS.get() or not library else {n: lambda _, r=r: r for n, r in DROPPING.items()})
    given = {name: getattr(module, name) for name in chosen if hasattr(module, name)}
    return {name: chosen[name](old) for name, old in given.items() if old is not None or (library and name == "dtype")}


def is_narrow(types: Iterable[Any]) -> bool:
    """Return whether one of these settings of layers, or types of parameters, is narrower than float32."""
    return any(dtype in NARROW for dtype in types)


def parts(path: Any) -> tuple[Any, ...]:
    """The names in a path of `jax.tree`."""
    return tuple(getattr(part, "key", getattr(part, "name", None)) for part in path)


def exact(a: Any) -> Any:
    """Return an array that is not a parameter, recomputed in float64 if its formula is known."""
    found = recomputed(np.asarray(a)) if getattr(a, "dtype", None) == np.float32 else None
    return a if found is None else jnp.asarray(found)


def in_type(a: Any, dtype: Any) -> jax.Array:
    """Return a copy of an array in a type. numpy widens it to float64: JAX would compile programs for each shape."""
    return jnp.array(np.asarray(a, np.float64) if dtype == "float64" else a, dtype)


def promote(net: nnx.Module, dtype: str = "float64") -> nnx.Module:
    """A copy in a type, by default float64, with its running statistics.

    In bfloat16 the parameters and statistics of BatchNorm are float32. A copy in its `own` types keeps all of them.
    """
    norms = {path for path, module in nnx.iter_modules(net) if isinstance(module, nnx.BatchNorm)}
    wide = None if dtype == OWN_TYPES else jnp.promote_types(dtype, jnp.float32)

    def cast(path: tuple[Any, ...], a: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        if wide is None:
            return a
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            return jnp.array(a, COMPLEX.get(dtype, jnp.complex64))
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        within = parts(path)
        return in_type(a, wide if any(within[: len(norm)] == norm for norm in norms) else dtype)

    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    if dtype == "float64":
        rest = jax.tree.map(exact, rest)
    net = nnx.merge(graphdef, *(jax.tree.map_with_path(cast, state) for state in (params, rest)))
    for _, module in nnx.iter_modules(net):
        for name, value in settings(module, dtype).items():
            setattr(module, name, value)
        if isinstance(module, nnx.Dropout) and module.rngs is None:
            module.rngs = nnx.Rngs(dropout=0).dropout.fork()
    return net


@contextmanager
def tapped(net: nnx.Module, tap: Tap, named: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """`tap` listens at the layers: during the call the `__call__` of their classes is replaced.

    Each layer carries its names as an attribute: `nnx.scan` and other transformations call copies of it.

    Args:
        named: the names of the layers that are recorded, by those of their modules (`running.flax.by_module`).
    """
    found = modules(net)
    marked: dict[int, tuple[nnx.Module, tuple[str, ...]]] = {}
    for own, names in named.items():
        if own in found:
            marked[id(found[own])] = found[own], names
    for module in found.values():
        if isinstance(module, nnx.RNN) and id(module.cell) in marked:  # the cell's own calls are inside a scan
            marked[id(module)] = module, marked.pop(id(module.cell))[1]
    for module, names in marked.values():
        setattr(module, MARK, names)
    classes = {type(module) for module, _ in marked.values()}
    originals = {cls: (cls.__call__, "__call__" in vars(cls)) for cls in classes if "__call__" in dir(cls)}
    listener = Listener(tap)

    inside: list[int] = []

    def listening(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kw: Any) -> Any:
            names = vars(self).get(MARK)
            if names is None or id(self) in inside:  # a subclass that calls its base class is entered once
                return original(self, *args, **kw)
            inside.append(id(self))
            try:
                return listener.around(names, lambda *args, **kw: original(self, *args, **kw), args, kw)
            finally:
                inside.pop()

        return call

    try:
        for cls, (original, _) in originals.items():
            cls.__call__ = listening(original)
        yield
    finally:
        for cls, (original, own) in originals.items():
            if own:
                cls.__call__ = original
            elif "__call__" in vars(cls):  # an interrupt may come before it is set
                del cls.__call__


def jitted(modules: Iterable[nnx.Module]) -> bool:
    """Return whether a method is under `jit`, which runs the Python code of its layers only once."""
    holders = {id(holder): holder for module in modules for holder in (module, *type(module).__mro__)}.values()
    return any(isinstance(value, JITTED) for holder in holders for value in vars(holder).values())


def functional(
    net: nnx.Module, names: Mapping[str, str] | None = None, tensors: Mapping[str, str] | None = None
) -> Functional:
    """Make the pure functions of `net`, which is left unchanged.

    Args:
        names: PyTorch's names of the modules that are recorded, by their own; by default all under their own.
        tensors: PyTorch's names of its tensors, by their own; by default all are taken, under their own.
    """
    net = nnx.clone(net)
    held = places(net, bare=True).values()
    if names is None:
        names = layer_names((n for n, m in modules(net).items() if not isinstance(m, nnx.Sequential)), held)
    named, lengths = by_module(names, held), stack_lengths(held)
    inlined = jitted(modules(net).values())
    definitions = {}
    for train in (False, True):
        net.train() if train else net.eval()
        definitions[train], params, stats = nnx.split(net, nnx.Param, ...)

    def forward(
        params: PyTree, stats: PyTree, inputs: PyTree, call: Call, train: bool, tap: Tap
    ) -> tuple[PyTree, PyTree]:
        copy = nnx.merge(definitions[train], params, stats, copy=True)
        if not DROPS.get():
            for _, module in nnx.iter_modules(copy):
                if type(module).__module__.startswith("flax."):
                    vars(module).update({name: rate for name, rate in DROPPING.items() if hasattr(module, name)})
        keywords = call.arguments(copy, inputs, train)  # before `tapped` hides the signature
        inline = jax.disable_jit() if inlined else nullcontext()
        with raising(), tapped(copy, tap, named), opened(lengths), float64_attention(), fixed_draws(), inline:
            values = call(copy, inputs, keywords)
        return values, nnx.state(copy, nnx.Not(nnx.Param))

    def to_torch(params: PyTree, stats: PyTree) -> dict[str, np.ndarray]:
        found = places(nnx.merge(definitions[True], params, stats), bare=tensors is not None)
        return {
            (tensors or {}).get(own, own): p.read() for own, p in found.items() if tensors is None or own in tensors
        }

    params, stats = placed((params, stats))
    return Functional(params, stats, forward, to_torch)
