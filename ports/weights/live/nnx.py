"""Reads and writes an `nnx.Module`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from ports.family import joined
from ports.weights.form.torch_form import Rule, WeightsError
from ports.weights.layers.kinds import kind_of
from ports.weights.layers.leaves import COUNTER, Leaf
from ports.weights.live import flax

# Variables that PyTorch has no tensor for.
NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate)


@dataclass(frozen=True)
class Variable:
    """A slot that is an `nnx.Variable`."""

    variable: nnx.Variable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variable.get_value().shape

    @property
    def dtype(self) -> np.dtype:
        return self.variable.get_value().dtype

    @property
    def key(self) -> int:
        return id(self.variable)

    def get(self) -> np.ndarray:
        return np.asarray(self.variable.get_value())

    def set(self, _: np.ndarray, value: jax.Array) -> None:
        self.variable.set_value(value)


@dataclass(frozen=True)
class Counter:
    """BatchNorm's `num_batches_tracked` if Flax has no variable for it: metadata of the running mean."""

    mean: nnx.Variable
    shape = ()
    dtype = np.dtype("int64")

    @property
    def key(self) -> tuple[int, str]:
        return id(self.mean), COUNTER

    def get(self) -> np.ndarray:
        return np.asarray(self.mean.get_metadata().get(COUNTER, 0), self.dtype)

    def set(self, array: np.ndarray, _: jax.Array) -> None:
        self.mean.set_metadata(COUNTER, int(array))


def modules(net: nnx.Module) -> dict[str, nnx.Module]:
    """Every module under its PyTorch name: attributes and positions joined by dots; a Sequential adds its positions."""
    return dict(_walk(net, ""))


def _walk(node: object, path: str) -> Iterator[tuple[str, nnx.Module]]:
    if isinstance(node, nnx.Module) and not isinstance(node, nnx.List):
        yield path, node
        if kind_of(node):
            return
        node = node.layers if isinstance(node, nnx.Sequential) else vars(node)
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list | tuple | nnx.List):
        children = enumerate(node)
    else:
        return
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else str(name))


def places(net: nnx.Module, bare: bool = False) -> dict[str, flax.Place[Variable | Counter]]:
    """Every tensor of the network under its PyTorch name.

    Args:
        bare: take variables outside of layers with a rule as they are.

    Raises:
        WeightsError: a module without a rule holds variables.
    """
    found: list[flax.Found[Variable | Counter]] = []
    problems: list[str] = []
    stated = flax.stated(net)
    for path, module in modules(net).items():
        kind = kind_of(module)
        if kind is None:
            own = {
                n: v for n, v in vars(module).items() if isinstance(v, nnx.Variable) and not isinstance(v, NO_WEIGHTS)
            }
            for name, variable in own.items():
                found.append(_own(path, name, variable))
            strange = [name for name in own if joined(path, name) not in stated]
            problems += [f"{path}: no rule for layer type {type(module).__name__}, which holds {n}" for n in strange]
            continue
        for leaf in kind.leaves(module):
            slots = [slot for name in leaf.flax if (slot := _slot(module, name)) is not None]
            if len(slots) == len(leaf.flax):
                like = _slot(module, leaf.like) if leaf.like else None
                if slots or like:
                    found.append(flax.Found(path, leaf, tuple(slots), like))
    covered = {slot.key for one in found for slot in one.slots}
    if any(id(variable) not in covered for variable in _variables(net)):
        named = {id(m): name for name, m in reversed(modules(net).items())}
        for at, variable in nnx.iter_graph(net):
            if not isinstance(variable, nnx.Variable) or isinstance(variable, NO_WEIGHTS) or id(variable) in covered:
                continue
            covered.add(id(variable))
            name = ".".join(map(str, at))
            owner = _owner(net, at, named)
            leaf = name.removeprefix(f"{owner}.") if owner else name
            found.append(_own(owner, leaf, variable))
            problems.append(f"{name}: belongs to no layer with a rule, or its rule leaves it out")
    if problems and not bare:
        raise WeightsError([f"{p}; add one with ports.weights.register" for p in problems])
    return flax.in_stacks(found)


def _own(path: str, name: str, variable: nnx.Variable) -> flax.Found[Variable | Counter]:
    """Return a variable as it is; if it is not an `nnx.Param`, it is not trained."""
    collection = "params" if isinstance(variable, nnx.Param) else "variables"
    return flax.Found(path, Leaf(name, (name,), collection=collection), (Variable(variable),), own=True)


def _owner(net: nnx.Module, at: Sequence[Any], named: Mapping[int, str]) -> str:
    """Return the name of the module that holds the variable at a path: the innermost one that has a name."""
    node: Any = net
    owner = ""
    for key in at[:-1]:
        node = getattr(node, key) if isinstance(key, str) and hasattr(node, key) else node[key]
        owner = named.get(id(node), owner)
    return owner


def _variables(net: Any) -> Iterator[nnx.Variable]:
    """Every variable below `net` that is a weight, some of them twice; `nnx.iter_graph` is several times slower."""
    kinds: dict[type, Any] = {}
    stack, seen = [net], set()
    while stack:
        node = stack.pop()
        if type(node) not in kinds:
            kinds[type(node)] = _kind(node)
        kind = kinds[type(node)]
        if kind == "variable":
            yield node
        elif kind is not None and id(node) not in seen:
            seen.add(id(node))
            stack += kind(node)


def _kind(node: object) -> Any:
    """`variable`, or a function that gives the parts of a node of this type; None for types that hold nothing."""
    if isinstance(node, nnx.Variable):
        return None if isinstance(node, NO_WEIGHTS) else "variable"
    if isinstance(node, nnx.Pytree):
        return lambda node: vars(node).values()
    if isinstance(node, Mapping):
        return lambda node: node.values()
    if isinstance(node, list | tuple):
        return iter
    if isinstance(node, str | type(None)) or jax.tree_util.all_leaves([node]):
        return None
    return lambda node: jax.tree.leaves(node, is_leaf=lambda part: part is not node)


def _slot(module: Any, path: str) -> Variable | Counter | None:
    value = module
    for name in path.split("."):
        value = getattr(value, name, None)
    if path == COUNTER and value is None:
        return Counter(module.mean)
    return Variable(value) if isinstance(value, nnx.Variable) else None


def read(net: nnx.Module, copy: bool = True) -> dict[str, np.ndarray]:
    return {name: place.read(copy) for name, place in places(net).items()}


def tensors(net: nnx.Module) -> dict[str, np.ndarray]:
    """The tensors under the framework's own names."""
    flat = nnx.to_flat_state(nnx.state(net, nnx.Not(nnx.RngState)))
    return {".".join(map(str, path)): np.asarray(variable.get_value()) for path, variable in flat}


def parameters(net: nnx.Module) -> dict[str, tuple[Leaf, list[tuple[str | int, ...]]]]:
    """The leaf of each parameter, and the paths of its arrays in a tree with the structure of the parameters."""
    paths: dict[Hashable, tuple[Any, ...]] = {**variable_paths(net)}
    found = {n: p for n, p in places(net).items() if p.leaf.collection == "params" and p.slots}
    return {name: (leaf, [paths[slot.key] for slot in slots]) for name, (leaf, slots) in flax.unstacked(found).items()}


def variable_paths(net: nnx.Module) -> dict[int, tuple[Any, ...]]:
    """Return the path in `nnx.state` of each variable, by the variable's id."""
    found: dict[int, tuple[Any, ...]] = {}
    for path, _ in nnx.to_flat_state(nnx.state(net)):
        node: Any = net
        for key in path:
            node = getattr(node, key) if isinstance(key, str) and hasattr(node, key) else node[key]
        found[id(node)] = path
    return found


def tree(net: nnx.Module) -> nnx.State:
    """Everything that the network holds, as one pytree."""
    return nnx.state(net)


def with_tree(net: nnx.Module, tree: nnx.State) -> nnx.Module:
    """The network itself, with another pytree of the same form."""
    nnx.update(net, tree)
    return net


def write(net: nnx.Module, weights: Mapping[str, Any], rules: Sequence[Rule] = (), copy: bool = True) -> None:
    set_all(flax.plan(places(net), weights, rules), copy)


def set_all(new: Sequence[tuple[Variable | Counter, np.ndarray]], copy: bool = True) -> None:
    """Gives slots their new values."""
    values = flax.to_jax([array for _, array in new], copy)
    for (slot, array), value in zip(new, values, strict=True):
        slot.set(array, value)
