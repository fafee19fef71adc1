"""Flax's two interfaces as the check sees them, one record each: no other module asks which of them a model uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from parity.numerics.quantities import Probe
from parity.running import inventory
from parity.running import linen as run_linen
from parity.running import nnx as run_nnx
from parity.running.flax import Functional
from parity.running.model_layers import ModelLayer
from ports.errors import UserError
from ports.frameworks import Net, framework_of
from ports.weights.live import flax as flax_weights
from ports.weights.live import linen as linen_weights
from ports.weights.live import nnx as nnx_weights


@dataclass(frozen=True)
class FlaxPort:
    """One of Flax's interfaces. A model is an `nnx.Module`, or Linen's `(module, variables)`.

    Attributes:
        promote: gives a copy of a model in a type, in which no dropout drops anything.
        copied: gives a model that may be written into.
        modules: gives the modules by the names of their scopes, if only a run shows them.
        inventory: gives the layers with tensors, from a model, its inputs and its `modules`.
        functional: gives the pure functions that are run; from a model, PyTorch's names of the layers that are recorded
            and of its tensors, its `modules`, and the type that it computes in.
        places: gives where a model keeps each tensor.
        called: gives the module that is called.
        put: writes arrays to their slots, and gives the model.
        variable_names: gives a checkpoint's name of the whole variable of a slot.
        types: gives the types that a model's layers are set to, and those of its parameters.
    """

    promote: Callable[..., Any]
    copied: Callable[[Any], Any]
    modules: Callable[[Any, Probe], Any]
    inventory: Callable[[Any, Probe, Any], list[ModelLayer]]
    functional: Callable[..., Functional]
    places: Callable[[Any, Any], Mapping[str, Any]]
    called: Callable[[Any], Any]
    put: Callable[[Any, Sequence[tuple[Any, np.ndarray]]], Any]
    variable_names: Callable[[Any], Callable[[Any], str]]
    types: Callable[[Any, Probe], list[Any]]

    def is_narrow(self, net: Net, fed: Probe) -> bool:
        """Return whether a model names a type below float32 itself, in its layers' settings or its parameters."""
        return run_nnx.is_narrow(self.types(net, fed))

    def written(self, net: Net, own: Mapping[str, np.ndarray], modules: object) -> Net:
        """Return the model with these tensors, in its own types: the same NNX model, or Linen's with new variables."""
        places = self.places(net, modules)
        given = {slot.key for name, place in places.items() if name in own for slot in place.slots}
        # A second name of a tensor follows its first name.
        places = {n: p for n, p in places.items() if n in own or given.isdisjoint(slot.key for slot in p.slots)}
        values = {n: own[n].astype(p.dtype) if n in own else p.read() for n, p in places.items()}
        new: Any = flax_weights.plan(places, values, ())  # pyright: ignore[reportArgumentType]
        return self.put(net, new)


def _nnx_functional(
    net: Net,
    names: Mapping[str, str] | None = None,
    tensors: Mapping[str, str] | None = None,
    modules: object = None,
    dtype: str = "",
) -> Functional:
    """The layers of an NNX model hold their types themselves, and the model holds its modules."""
    return run_nnx.functional(net, names, tensors)


def _put_nnx(net: Net, new: Sequence[tuple[Any, np.ndarray]]) -> Net:
    nnx_weights.set_all(new)
    return net


def _nnx_names(net: Net) -> Callable[[Any], str]:
    paths = nnx_weights.variable_paths(net)  # pyright: ignore[reportArgumentType]
    return lambda slot: ".".join(map(str, paths[slot.key]))


def _put_linen(net: Net, new: Sequence[tuple[Any, np.ndarray]]) -> Net:
    variables = jax.tree.map(lambda a: a, dict(net[1]))
    for slot, array in new:
        node = variables
        for part in slot.path[:-1]:
            node = node.get(part, {})
        if slot.path[-1] in node:
            node[slot.path[-1]] = jax.numpy.array(array)
    return net[0], variables


FLAX_PORTS = {
    "nnx": FlaxPort(
        promote=run_nnx.promote,
        copied=nnx.clone,
        modules=lambda net, fed: None,
        inventory=lambda net, fed, modules: inventory.of_nnx(net, fed),
        functional=_nnx_functional,
        places=lambda net, modules: nnx_weights.places(net, bare=True),
        called=lambda net: net,
        put=_put_nnx,
        variable_names=_nnx_names,
        types=inventory.nnx_types,
    ),
    "linen": FlaxPort(
        promote=run_linen.promote,
        copied=lambda net: net,
        modules=inventory.linen_layers,
        inventory=inventory.of_linen,
        functional=run_linen.functional,
        places=linen_weights.places,
        called=lambda net: net[0],
        put=_put_linen,
        variable_names=lambda net: lambda slot: ".".join(slot.path),
        types=inventory.linen_types,
    ),
}


def port_of(net: Net) -> str:
    """Return `nnx` or `linen`.

    Raises:
        UserError: `net` is not a Flax model.
    """
    if not is_flax(net):
        raise UserError(f"got {type(net).__name__}, expected an nnx.Module or Linen's (module, variables)")
    return framework_of(net)


def is_flax(net: Net) -> bool:
    """Return whether `net` is an `nnx.Module` or Linen's `(module, variables)`."""
    try:
        return framework_of(net) in FLAX_PORTS
    except UserError:
        return False
