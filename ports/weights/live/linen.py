"""Reads and writes a Linen model: the pair `(module, variables)`.

Layers are found through the module's attributes (`setup`), which have PyTorch's names; the variables alone do not show
a layer's type. Parameters of a layer made inside an `nn.compact` method have no attribute and are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ports.weights.form.torch_form import Rule, WeightsError, describe
from ports.weights.layers.kinds import kind_of
from ports.weights.layers.leaves import COUNTER, Leaf
from ports.weights.live import flax

Net = tuple[nn.Module, Mapping[str, Any]]
Path = tuple[str, ...]

# Linen's own BatchNorm has no variable for the counter: it gets this collection, which no layer reads.
COUNTERS = "counters"


@dataclass(frozen=True)
class Variable:
    """A slot that is one array in the tree of variables, at (collection, *scope, name)."""

    path: Path
    value: jax.Array | np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    @property
    def key(self) -> Path:
        return self.path

    def get(self) -> np.ndarray:
        return np.asarray(self.value)


def modules(net: Net) -> dict[str, nn.Module]:
    """Every module under its PyTorch name: attributes and positions joined by dots; a Sequential adds its positions.

    They are bound to the variables; `module.path` is Linen's own name for it.
    """
    module, variables = net
    return dict(_walk(module.bind(variables), ""))


def _walk(node: object, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(node, nn.Module):
        yield path, node
        if kind_of(node):
            return
        getattr(node, "setup_has_run", None)  # the first look for an unknown attribute makes Linen run `setup`
        attributes = {n: v for n, v in vars(node).items() if n not in ("scope", "name") and not n.startswith("_")}
        node = node.layers if isinstance(node, nn.Sequential) else attributes
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    else:
        return
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else str(name))


def places(net: Net, layers: Mapping[str, nn.Module] | None = None) -> dict[str, flax.Place[Variable]]:
    """Every tensor of the network under its PyTorch name.

    Args:
        layers: its modules by name, if the attributes do not show them (`nn.compact`); then variables outside of layers
            with a rule are taken as they are.

    Raises:
        WeightsError: variables outside of layers with a rule.
    """
    arrays: dict[Path, Any] = traverse_util.flatten_dict(dict(net[1]))
    found: list[flax.Found[Variable]] = []
    named: dict[Path, str] = {}
    for path, module in (modules(net) if layers is None else layers).items():
        kind, scope = kind_of(module), tuple(module.path)
        named.setdefault(scope, path)
        for leaf in kind.leaves(module) if kind else ():
            slots = []
            for name in leaf.flax:
                place = (leaf.collection, *scope, *name.split("."))
                if name == COUNTER and place not in arrays:
                    place = (COUNTERS, *place[1:])
                    arrays.setdefault(place, np.zeros((), np.int32))
                if place in arrays:
                    slots.append(Variable(place, arrays[place]))
            if len(slots) == len(leaf.flax):
                place = (leaf.collection, *scope, *(leaf.like or "").split("."))
                like = Variable(place, arrays[place]) if place in arrays else None
                if slots or like:
                    found.append(flax.Found(path, leaf, tuple(slots), like))
    covered = {slot.path for one in found for slot in one.slots}
    left = [path for path in arrays if path not in covered]
    stated = flax.stated(net[0])
    strange = [path for path in left if ".".join(path[1:]) not in stated]
    if strange and layers is None:
        raise WeightsError(
            f"{describe(map('.'.join, strange))}: belongs to no layer with a rule; a layer made in nn.compact has no "
            "PyTorch name: make it in setup(), or add a rule with ports.weights.register"
        )
    return flax.in_stacks([*found, *(_own(at, arrays[at], named) for at in left)])


def _own(at: Path, array: Any, named: Mapping[Path, str]) -> flax.Found[Variable]:
    """Return a variable as it is, in the innermost module that has a name."""
    scope = at[1:-1]
    while scope and scope not in named:
        scope = scope[:-1]
    leaf = ".".join(at[1 + len(scope) :])
    return flax.Found(named.get(scope, ""), Leaf(leaf, (leaf,), collection=at[0]), (Variable(at, array),), own=True)


def read(net: Net, copy: bool = True) -> dict[str, np.ndarray]:
    return {name: place.read(copy) for name, place in places(net).items()}


def tensors(net: Net) -> dict[str, np.ndarray]:
    """The tensors under the framework's own names."""
    return {".".join(path): np.asarray(value) for path, value in traverse_util.flatten_dict(dict(net[1])).items()}


def parameters(net: Net) -> dict[str, tuple[Leaf, list[tuple[str | int, ...]]]]:
    """The leaf of each parameter, and the paths of its arrays in a tree with the structure of the parameters."""
    found = {n: p for n, p in places(net).items() if p.leaf.collection == "params" and p.slots}
    return {name: (leaf, [slot.path[1:] for slot in slots]) for name, (leaf, slots) in flax.unstacked(found).items()}


def tree(net: Net) -> Mapping[str, Any]:
    """Everything that the network holds, as one pytree."""
    return net[1]


def with_tree(net: Net, tree: Mapping[str, Any]) -> Net:
    """The network with another pytree of the same form."""
    return net[0], tree


def write(net: Net, weights: Mapping[str, Any], rules: Sequence[Rule] = (), copy: bool = True) -> dict[str, Any]:
    new = flax.plan(places(net), weights, rules)
    values = flax.to_jax([array for _, array in new], copy)
    return traverse_util.unflatten_dict({slot.path: value for (slot, _), value in zip(new, values, strict=True)})
