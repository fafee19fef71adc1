"""Read and write live states of optax, `nnx.Optimizer`'s among them.

A state is a tree of NamedTuples; `ports.optimizers.NODES` says which of their fields hold tensors and step counts. The
trees in these fields may have holes (`optax.MaskedNode`) if another part of the state has the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax import tree_util
from jaxtyping import PyTree

from ports.frameworks import Net, port_of
from ports.optimizers import Node
from ports.weights.form.torch_form import WeightsError, describe, lossless
from ports.weights.live.flax import Place, plan, to_jax
from ports.weights.optimizer.form import OptimizerState, Tensors, agreed
from ports.weights.optimizer.table import KNOWN_OPTAX, STEP, node_of, problems, trees_of, whole_number

Path = tuple[Any, ...]
Change = Callable[[Node, Any], Any]


@dataclass(frozen=True)
class Cell:
    """One array of a tree with the structure of the parameters, by its path."""

    path: Path
    value: Any

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


@dataclass(frozen=True)
class Slots:
    """The trees of one NamedTuple: for each of PyTorch's names the cells of each parameter."""

    cells: dict[str, dict[str, Place[Cell]]]

    @property
    def names(self) -> set[str]:
        return set().union(*self.cells.values()) if self.cells else set()


def read(state: PyTree, net: Net, steps: int | None) -> OptimizerState:
    """As `ports.weights.optimizer.read`."""
    inner, own_step = _opened(state)
    parameters = port_of(net).flax_live.parameters(net)
    found, counts = _survey(inner, parameters)
    if not counts and own_step is not None:
        counts = {own_step: "nnx.Optimizer.step"}
    result = OptimizerState()
    for slots in found:
        for slot, places in slots.cells.items():
            result |= {f"{slot}/{name}": place.read() for name, place in places.items()}
    result[STEP] = np.array(agreed(counts, steps, bool(result), "this transform"), np.int64)
    covered = set().union(*(slots.names for slots in found)) if found else set()
    result.stateless = frozenset(parameters.keys() - covered)
    return result


def write(state: PyTree, net: Net, step: int, tensors: Tensors, stateless: Collection[str]) -> PyTree:
    """As `ports.weights.optimizer.write`."""
    inner, own_step = _opened(state)
    parameters = port_of(net).flax_live.parameters(net)
    found, _ = _survey(inner, parameters)
    expected: dict[str, set[str]] = {}
    for slots in found:
        for slot, places in slots.cells.items():
            for name in places:
                expected.setdefault(name, set()).add(slot)
    wrong = problems(tensors, expected, step > 0 or bool(tensors), stateless, "the transform")
    changed = _mapped(inner, lambda row, node: _filled(row, node, parameters, step, tensors, wrong))
    if own_step is not None and step >= 2**32:
        wrong.append(f"{STEP}: got {step:,}, which nnx.Optimizer's uint32 does not hold")
    if wrong:
        raise WeightsError(list(dict.fromkeys(wrong)))
    if own_step is None:
        return changed
    from flax import nnx

    nnx.update(state.opt_state, nnx.state(changed))
    state.step[...] = step
    return None


def _opened(state: PyTree) -> tuple[PyTree, int | None]:
    """The state of optax, and the count of the `nnx.Optimizer` around it."""
    from flax import nnx

    if isinstance(state, nnx.Optimizer):
        return state.opt_state, whole_number(np.asarray(state.step[...]), "nnx.Optimizer.step")
    if not isinstance(state, tuple | list | Mapping):
        raise WeightsError(
            f"optimizer: got {type(state).__name__}, expected a torch.optim.Optimizer, an nnx.Optimizer or the state "
            "of an optax transform"
        )
    return state, None


def _mapped(state: PyTree, change: Change) -> PyTree:
    """A state with each known NamedTuple changed.

    Raises:
        WeightsError: a NamedTuple with arrays that no row names.
    """
    if row := node_of(state):
        inner = {name: _mapped(getattr(state, name), change) for name in row.inner}
        return change(row, state)._replace(**inner)
    if isinstance(state, Mapping):
        return {name: _mapped(part, change) for name, part in state.items()}
    if isinstance(state, tuple | list) and not hasattr(state, "_fields"):
        return type(state)(_mapped(part, change) for part in state)
    if jax.tree.leaves(state):
        got = f"{type(state).__module__.partition('.')[0]}'s {type(state).__name__}"
        raise WeightsError(f"optimizer: got {got}, whose meaning is not known; expected states of {KNOWN_OPTAX}")
    return state


def _survey(state: PyTree, parameters: Mapping[str, Any]) -> tuple[list[Slots], dict[int, str]]:
    """The tensors and the step counts of a state.

    Raises:
        WeightsError: a parameter in two parts of the state, a gradient that waits for its step.
    """
    found: list[Slots] = []
    counts: dict[int, str] = {}

    def look(row: Node, node: Any) -> Any:
        values = node._asdict()
        for name in row.counts:
            counts.setdefault(_number(values[name], f"{row.name}.{name}"), f"{row.name}.{name}")
        for name in row.pending:
            if waiting := _number(values[name], f"{row.name}.{name}"):
                raise WeightsError(
                    f"{row.name}: {waiting} gradients wait for their step, and no other framework has a place for "
                    "them; take the state after a whole step"
                )
        if row.tensors:
            trees = trees_of(row, values)
            found.append(Slots({slot: _places(tree, parameters, slot)[0] for slot, tree in trees.items()}))
        return node

    _mapped(state, look)
    seen: set[str] = set()
    for slots in found:
        if double := slots.names & seen:
            raise WeightsError(f"optimizer: {describe(sorted(double))}: in two parts of the state, expected one")
        seen |= slots.names
    return found, counts


def _number(value: PyTree, what: str) -> int:
    leaves = jax.tree.leaves(value)  # in `nnx.Optimizer` a number is a variable
    return whole_number(np.asarray(leaves[0]) if len(leaves) == 1 else value, what)


def _filled(row: Node, node: Any, parameters: Mapping[str, Any], step: int, tensors: Tensors, wrong: list[str]) -> Any:
    """A NamedTuple with new counts and tensors; problems go to `wrong`."""
    values = node._asdict()
    new: dict[str, Any] = {}
    for name in row.counts:
        dtype = np.asarray(jax.tree.leaves(values[name])[0]).dtype
        count = lossless(np.array(step, np.int64), dtype)
        if count is None:
            wrong.append(f"{STEP}: got {step:,}, which {row.name}'s {dtype} does not hold")
        else:
            new[name] = jax.tree.map(lambda _, count=count: to_jax([count], True)[0], values[name])
    for name, slot in row.tensors.items():
        if slot == "*":
            trees = values[name].items()
            new[name] = {slot: _new_tree(tree, parameters, slot, tensors, wrong) for slot, tree in trees}
        else:
            new[name] = _new_tree(values[name], parameters, slot, tensors, wrong)
    return node._replace(**new)


def _new_tree(tree: PyTree, parameters: Mapping[str, Any], slot: str, tensors: Tensors, wrong: list[str]) -> PyTree:
    places, leaves, treedef = _places(tree, parameters, slot)
    new: dict[Path, np.ndarray] = {}
    for name, place in places.items():
        if name in tensors.get(slot, {}):
            try:
                new |= {cell.path: array for cell, array in plan({name: place}, {name: tensors[slot][name]}, ())}
            except WeightsError as error:
                wrong += [f"{slot}/{problem}" for problem in error.problems]
    arrays = dict(zip(new, to_jax(list(new.values()), True), strict=True))
    return treedef.unflatten([arrays.get(path, leaf) for path, leaf in leaves.items()])


def _places(
    tree: PyTree, parameters: Mapping[str, Any], slot: str
) -> tuple[dict[str, Place[Cell]], dict[Path, Any], Any]:
    """The cells of each parameter that a tree has, and the tree in pieces.

    Raises:
        WeightsError: a parameter of which only a part exists, an array that belongs to no parameter.
    """
    flat, treedef = tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    leaves = {_plain(path): leaf for path, leaf in flat}
    places, used, wrong = {}, set(), []
    for name, (leaf, paths) in parameters.items():
        cells = [Cell(path, leaves[path]) for path in paths if hasattr(leaves.get(path), "dtype")]
        used |= {cell.path for cell in cells}
        if len(cells) == len(paths):
            places[name] = Place(leaf, cells)
        elif cells:
            wrong.append(f"{slot}/{name}: {len(paths) - len(cells)} of its {len(paths)} parts are masked")
    rest = [".".join(map(str, p)) for p, leaf in leaves.items() if hasattr(leaf, "dtype") and p not in used]
    if rest:
        wrong.append(f"{slot}/{describe(rest)}: the network has no such parameter")
    if wrong:
        raise WeightsError(wrong)
    return places, leaves, treedef


def _plain(path: Path) -> Path:
    """A path of JAX in names and numbers, without the `value` of a variable."""
    return tuple(
        getattr(key, "key", getattr(key, "idx", None)) for key in path if not isinstance(key, tree_util.GetAttrKey)
    )
