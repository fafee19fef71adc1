"""A Linen network as the pure functions that `flax.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import meta
from flax.core.scope import Scope
from flax.errors import ModifyScopeVariableError
from jax.typing import ArrayLike
from jaxtyping import PyTree

from parity.numerics.calls import Call
from parity.running.draws_jax import fixed_draws, keys
from parity.running.flax import (
    Functional,
    Listener,
    by_module,
    float64_attention,
    layer_names,
    placed,
    stack_lengths,
)
from parity.running.nnx import COMPLEX, OWN_TYPES, exact, in_type, parts, settings
from parity.running.opened import opened
from parity.running.raised import raising
from parity.running.taps import Tap
from ports.weights.live.linen import modules, places

Net = tuple[nn.Module, Mapping[str, Any]]


def promote(net: Net, dtype: str = "float64") -> Net:
    """The variables in a type, by default float64, with running statistics; `functional` sets the layers to it.

    In bfloat16 statistics, and parameters of the modules that have them, are float32. In its `own` types it stays as
    it is.
    """
    module, variables = net
    if dtype == OWN_TYPES:
        return module, jax.tree.map(jnp.asarray, dict(variables))
    paths = [parts(path) for path, _ in jax.tree.leaves_with_path(dict(variables))]
    norms = {path[1:-1] for path in paths if path[0] == "batch_stats"}
    wide = jnp.promote_types(dtype, jnp.float32)

    def cast(path: tuple[Any, ...], a: ArrayLike) -> jax.Array:
        if jnp.issubdtype(jnp.asarray(a).dtype, jnp.complexfloating):
            return jnp.array(a, COMPLEX.get(dtype, jnp.complex64))
        if not jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating):
            return jnp.array(a)
        return in_type(a, wide if parts(path)[1:-1] in norms else dtype)

    held = dict(variables)
    if dtype == "float64":
        held = {name: tree if name == "params" else jax.tree.map(exact, tree) for name, tree in held.items()}
    return module, jax.tree.map_with_path(cast, held)


def plain(module: nn.Module, dtype: str = "float64") -> None:
    """Makes a module compute in a type: it uses a copy that lives for one call."""
    for name, value in settings(module, dtype).items():
        object.__setattr__(module, name, value)


def jitted(modules: Iterable[nn.Module]) -> bool:
    """Whether a module is under `nn.jit`, which runs the Python code of its layers only once."""
    return any(type(module).__name__.startswith("Jit") for module in modules)


@contextmanager
def initialised() -> Iterator[None]:
    """Make modules take their parameters without tracing the functions that would draw them.

    Flax traces these draws at every call, only for their shapes. A draw that names float32, as
    `self.param("scale", normal(0.02), shape, jnp.float32)`, cannot be traced while casts give float64.
    """
    original = Scope.param

    def param(self: Scope, name: str, init_fn: Any, *args: Any, unbox: bool = True, **keywords: Any) -> Any:
        if not self.has_variable("params", name):
            return original(self, name, init_fn, *args, unbox=unbox, **keywords)
        self.reserve(name, "params")
        value = self.get_variable("params", name)
        return meta.unbox(value) if unbox else value

    Scope.param = param
    try:
        yield
    finally:
        Scope.param = original


class Layers(dict[str, nn.Module]):
    """Modules by the names of their scopes.

    Attributes:
        keeps_state: whether the model runs in eval mode with an immutable state. Some modules take their mode from the
            mutable collections, so in eval mode they get none. A model that also changes its state in eval mode may do
            so, because the check must find this mistake.
    """

    keeps_state: bool = False


def evaluated(module: nn.Module, variables: PyTree, method: Callable[..., Any]) -> tuple[Any, bool]:
    """Return the output of a module in eval mode, and whether it keeps its state there."""
    # Some models draw in eval mode, too: a variational autoencoder samples its code.
    try:
        return module.apply(variables, method=method, rngs=keys()), True
    except ModifyScopeVariableError:
        state = [name for name in variables if name != "params"]
        return module.apply(variables, method=method, mutable=state, rngs=keys())[0], False


def functional(
    net: Net,
    names: Mapping[str, str] | None = None,
    tensors: Mapping[str, str] | None = None,
    layers: Mapping[str, nn.Module] | None = None,
    dtype: str = "float64",
) -> Functional:
    """`net` in eval and train mode, as its `__call__` names them.

    Args:
        names: PyTorch's names of the modules that are recorded, by their own; by default all under their own.
        tensors: PyTorch's names of its tensors, by their own; by default all are taken, under their own.
        layers: its modules by name, if they were found by a run.
        dtype: the type that its layers compute in.
    """
    module, variables = net
    found = modules(net) if layers is None else layers
    held = places(net, found).values()
    if names is None:
        names = layer_names((n for n, m in found.items() if not isinstance(m, nn.Sequential)), held)
    lengths = stack_lengths(held)
    named = {found[own].path: several for own, several in by_module(names, held).items() if own in found}
    inlined = jitted(found.values())
    keeps_state = isinstance(layers, Layers) and layers.keeps_state
    cells = {m.cell.path: m.path for m in found.values() if isinstance(m, nn.RNN)}
    named = {cells.get(path, path): name for path, name in named.items()}

    def forward(
        params: PyTree, stats: PyTree, inputs: PyTree, call: Call, train: bool, tap: Tap
    ) -> tuple[PyTree, PyTree]:
        listener = Listener(tap)

        def listening(
            method: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any], context: nn.module.InterceptorContext
        ) -> Any:
            plain(context.module, dtype)
            if isinstance(context.module, nn.RNN):
                plain(context.module.cell, dtype)
            if context.method_name != "__call__" or context.module.path not in named:
                return method(*args, **kw)
            return listener.around(named[context.module.path], method, args, kw)

        keywords = call.arguments(module, inputs, train)
        with ExitStack() as stack:
            seen = nn.intercept_methods(listening)
            for context in (raising(), seen, initialised(), opened(lengths), float64_attention(), fixed_draws()):
                stack.enter_context(context)
            if inlined:
                stack.enter_context(jax.disable_jit())

            values, new = module.apply(
                {"params": params, **stats},
                mutable=[] if keeps_state and not train else list(stats),
                rngs=keys(),
                method=lambda bound: call(bound, inputs, keywords),
            )
        return values, {**stats, **new} if train else stats

    def to_torch(params: PyTree, stats: PyTree) -> dict[str, np.ndarray]:
        placed = places((module, {"params": params, **stats}), layers)
        return {
            (tensors or {}).get(own, own): p.read() for own, p in placed.items() if tensors is None or own in tensors
        }

    stats = {name: tree for name, tree in variables.items() if name != "params"}
    params, stats = placed((variables["params"], stats))
    return Functional(params, stats, forward, to_torch)
