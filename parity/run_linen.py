"""A Linen network as the pure functions that `run_flax.py` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from parity.run_flax import Functional, Record
from ports.weights import read
from ports.weights.linen import modules

Net = tuple[nn.Module, Mapping[str, Any]]


def promote(net: Net) -> Net:
    """The variables in float64, running statistics too; `functional` makes the layers compute in their inputs' type."""
    module, variables = net
    cast = jax.tree.map(
        lambda a: jnp.array(a, jnp.float64 if jnp.issubdtype(a.dtype, jnp.floating) else None), variables
    )
    return module, cast


def functional(net: Net) -> Functional:
    """`net` in eval and train mode: its `__call__` takes `train`."""
    module, variables = net
    named = {m.path: name for name, m in modules(net).items() if name and not isinstance(m, nn.Sequential)}

    def forward(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[Any, Record, Any]:
        record: Record = {}

        def keep(call: Any, args: Any, kw: Any, context: nn.module.InterceptorContext) -> Any:
            if getattr(context.module, "dtype", None) is not None:
                object.__setattr__(context.module, "dtype", None)  # a copy that lives for this call
            output = call(*args, **kw)
            if context.method_name == "__call__" and context.module.path in named:
                record[named[context.module.path]] = (args[0], output)
            return output

        with nn.intercept_methods(keep):
            values, new = module.apply({"params": params, **stats}, images, train=train, mutable=list(stats))
        return values, record, new if train else stats

    stats = {name: tree for name, tree in variables.items() if name != "params"}
    return Functional(
        variables["params"], stats, forward, lambda params, stats: read((module, {"params": params, **stats}))
    )
