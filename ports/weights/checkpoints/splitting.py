"""Take a file's content apart: the weights, the state of an optimizer, and the rest of a training checkpoint.

Optimizer states move in the torch form of `ports.weights.optimizer`: `exp_avg/conv1.weight`, and `step`. This module
only finds a state; `stored_states.py` reads it. Where a state is, by kind of file:

| file                     | weights                  | state of the optimizer                              |
|--------------------------|--------------------------|-----------------------------------------------------|
| PyTorch's                | `model`, `state_dict`, … | `optimizer`: `torch.optim`'s own state_dict         |
| tree of an NNX network   | `model`                  | `opt_state`: `count`, `tensors` (`ports.optim`)     |
| tree of a Linen network  | `params`, `batch_stats`  | the same, or optax's own (`ports.optimizers.NODES`) |
| flat, or PyTorch's names | all names                | `optimizer/exp_avg/conv1.weight`, `optimizer/step`  |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ports.weights.files.formats import Content, Format, Tree, flat, nested
from ports.weights.form.lazy import is_array
from ports.weights.form.torch_form import WeightsError
from ports.weights.optimizer.table import STEP

NESTED = ("state_dict", "model", "module", "ema", "model_state_dict", "model_state", "state_dict_ema", "net")
OPTIMIZER = ("optimizer", "opt_state", "optimizer_state_dict", "optimizer_states")
STEPS = (STEP, "global_step")
PREFIX = "optimizer/"


def check_names(names: Iterable[str], row: Format) -> None:
    """Raise if a tensor of the network would be read as the state of an optimizer.

    Raises:
        WeightsError: a flat format cannot distinguish it from the steps of an optimizer.
    """
    if not row.nested and PREFIX + STEP in names:
        raise WeightsError(
            f"{PREFIX}{STEP}: is what {row.name} calls the steps of an optimizer, expected another name of a tensor"
        )


@dataclass
class Parts:
    """A file taken apart, under the file's own names.

    Attributes:
        weights: the tensors of the network.
        stored: the state of the optimizer as the file has it; None if there is none.
        counter: the number of steps that the file has outside of that state.
        notes: other content of the file, which is left out.
    """

    weights: dict[str, Any]
    stored: Any = None
    counter: Any = None
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        """Whether there is the state of an optimizer."""
        return self.stored is not None


def split(path: str | Path, content: Content, row: Format, key: str | None = None, weights_only: bool = False) -> Parts:
    """Take a file's content apart.

    Args:
        key: where the weights are, if they are not found automatically: `ema`, `checkpoint.model`.
        weights_only: leave the state of the optimizer out.

    Raises:
        WeightsError: no weights there, or a value among them that is not a tensor.
    """
    root = bare(content.tree)
    if not row.nested:
        return _split_flat(path, content, weights_only)
    holder, notes = _holder(path, root, row, key)
    parts = Parts(_weights(path, holder, row), metadata=content.metadata, notes=notes)
    if not parts.weights:
        raise WeightsError(f"weights {path}: holds no tensors")
    if row.name == "torch" and "params" not in holder:
        others = [name for name in root if root is not holder and name not in (*NESTED, *OPTIMIZER, *STEPS)]
        if others:
            notes.append(f"left out besides the weights: {', '.join(map(str, others))}")
    found = next((root[name] for name in OPTIMIZER if name in root and root is not holder), None)
    if "params" in holder:
        found = next((holder[name] for name in OPTIMIZER if name in holder), found)
    parts.counter = next((root[name] for name in STEPS if root.get(name) is not None), None)
    if not weights_only:
        parts.stored = _stored(found, notes)
    return parts


def _stored(found: object, notes: list[str]) -> Any:
    """The state of the optimizer, or another value in its place that is not text or a number."""
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if isinstance(found, Mapping | list | tuple):
        return found or None
    if found is not None:
        notes.append(f"optimizer: left out: got {type(found).__name__}, expected a state")
    return None


def bare(tree: Tree) -> Tree:
    """A tree without the `value` that Orbax writes below each of NNX's variables."""
    leaves = list(flat(tree))
    if not all(at[-1] == "value" and len(at) > 1 for at, _ in leaves):
        return tree
    return nested((at[:-1], value) for at, value in leaves)


def _holder(path: str | Path, root: Tree, row: Format, key: str | None) -> tuple[Tree, list[str]]:
    """The table that holds the weights."""
    holder: Any = root
    notes: list[str] = []
    if key is not None:
        for part in key.split("."):
            if not isinstance(holder, Mapping) or part not in holder:
                names = ", ".join(map(str, holder)) if isinstance(holder, Mapping) else "no table"
                raise WeightsError(f"weights {path}: no {part!r} there (--key {key}); got {names[:200]}")
            holder = holder[part]
    for _ in range(len(NESTED)):
        at = next(
            (name for name in NESTED if isinstance(holder, Mapping) and isinstance(holder.get(name), Mapping)), None
        )
        if at is None or (row.name != "torch" and not _only_training(holder, at)) or _is_part(holder, at):
            break
        if more := [n for n in NESTED if n != at and isinstance(holder.get(n), Mapping)]:
            notes.append(f"taken from {at}; the file holds {', '.join(more)} too (--key takes another)")
        holder = holder[at]
    if not isinstance(holder, Mapping) or not holder:
        raise WeightsError(f"weights {path}: got {type(holder).__name__}, expected a state_dict")
    return cast(Tree, holder), notes


def _is_part(holder: Mapping[str, Any], at: str) -> bool:
    """Whether a table is a module of a Flax tree: it holds tables, as another one beside it does."""
    trees = (name for name, node in holder.items() if isinstance(node, Mapping) and _is_tree(node))
    others = [name for name in trees if name not in (*NESTED, *OPTIMIZER, *STEPS)]
    return bool(others) and any(isinstance(node, Mapping) for node in holder[at].values())


def _only_training(holder: Mapping[str, Any], at: str) -> bool:
    return all(name == at or name in (*NESTED, *OPTIMIZER, *STEPS) for name in holder)


def _weights(path: str | Path, holder: Tree, row: Format) -> dict[str, Any]:
    tree = holder
    if isinstance(holder.get("params"), Mapping):
        tree = {n: v for n, v in holder.items() if isinstance(v, Mapping) and n not in (*NESTED, *OPTIMIZER)}
    elif row.name == "torch" and not any(isinstance(v, Mapping) and _is_tree(v) for v in holder.values()):
        other = [f"{name} ({type(v).__name__})" for name, v in holder.items() if not is_array(v)]
        if other:
            raise WeightsError(f"weights {path}: {other[0]} is not a tensor; expected a state_dict of tensors")
    weights: dict[str, Any] = {}
    for at, value in flat(tree):
        if other := [part for part in at if not isinstance(part, str)]:
            raise WeightsError(f"weights {path}: got a tensor named {other[0]!r}, expected text")
        name = ".".join(at)
        if not is_array(value):
            raise WeightsError(f"weights {path}: {name} ({type(value).__name__}) is not a tensor")
        if name in weights:
            raise WeightsError(f"weights {path}: two tensors are named {name}")
        weights[name] = value
    return weights


def _is_tree(node: Mapping[Any, Any]) -> bool:
    """Whether all leaves are tensors."""
    leaves = [value for _, value in flat(node)]
    return bool(leaves) and all(is_array(value) for value in leaves)


def _split_flat(path: str | Path, content: Content, weights_only: bool) -> Parts:
    parts = Parts({}, metadata=content.metadata)
    state = {n for n in content.tree if n.startswith(PREFIX)} if PREFIX + STEP in content.tree else set()
    stored: dict[str, Any] = {}
    for name, array in content.tree.items():
        slot, slash, parameter = name.removeprefix(PREFIX).partition("/")
        if name not in state:
            parts.weights[name] = array
        elif slash:
            stored.setdefault(f"{slot}/", {})[parameter] = array
        else:
            stored[slot] = array
    if not parts.weights:
        raise WeightsError(f"weights {path}: holds no tensors")
    if stored and not weights_only:
        # A tensor, and other tensors below its name: they keep their different names, and `stored_states` refuses them.
        parts.stored = {(n if n.removesuffix("/") in stored else n.removesuffix("/")): v for n, v in stored.items()}
    return parts
