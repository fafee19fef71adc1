"""A file's content taken apart: the weights, the state of an optimizer, and what else a training checkpoint holds.

Optimizer states move in the hub form of `ports.weights.optimizer`: `exp_avg/conv1.weight`, and `step`. Where a state
stands, by kind of file:

| file                     | weights                  | state of the optimizer                              |
|--------------------------|--------------------------|-----------------------------------------------------|
| PyTorch's                | `model`, `state_dict`, … | `optimizer`: `torch.optim`'s own state_dict         |
| tree of an NNX network   | `model`                  | `opt_state`: `count`, `tensors` (`ports.optim`)     |
| tree of a Linen network  | `params`, `batch_stats`  | the same (optax's own Adam and momentum are read)   |
| flat, or PyTorch's names | all names                | `optimizer/exp_avg/conv1.weight`, `optimizer/step`  |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ports.weights.formats import Content, Format, Tree, flat, nested
from ports.weights.hub import WeightsError
from ports.weights.lazy import is_array
from ports.weights.optimizer import STEP

NESTED = ("state_dict", "model", "module", "ema", "model_state_dict", "model_state", "state_dict_ema", "net")
OPTIMIZER = ("optimizer", "opt_state", "optimizer_state_dict", "optimizer_states")
STEPS = (STEP, "global_step")
PREFIX = "optimizer/"

# optax's own states, by the fields that tell them, and what PyTorch calls their trees.
OPTAX = (
    (("count", "mu", "nu"), {"mu": "exp_avg", "nu": "exp_avg_sq"}),
    (("trace",), {"trace": "momentum_buffer"}),
)


@dataclass
class Parts:
    """A file taken apart, under the file's own names.

    Attributes:
        weights: the tensors of the network.
        slots: the optimizer's tensors by its name for them (`exp_avg`), then by parameter.
        torch: `torch.optim`'s state_dict, whose tensors go by number until the parameters are known.
        step: steps done, where the file says it.
        options: the optimizer's options (its `param_groups` without the parameters).
        stateless: parameters that never got a gradient, in the hub form.
        notes: what is in the file besides, and is left out.
    """

    weights: dict[str, np.ndarray]
    slots: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    torch: Tree | None = None
    step: int | None = None
    options: list[dict[str, Any]] | None = None
    stateless: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        """Whether there is the state of an optimizer."""
        return bool(self.slots) or self.torch is not None


def split(path: Any, content: Content, row: Format, key: str | None = None, weights_only: bool = False) -> Parts:
    """Takes a file's content apart.

    Args:
        key: where the weights stand, where that is not found by itself: `ema`, `checkpoint.model`.
        weights_only: leaves the state of the optimizer unread.

    Raises:
        WeightsError: no weights there, or what is no tensor among them.
    """
    root = bare(content.tree)
    if not row.nested:
        return _split_flat(path, content)
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
    steps = next((root[name] for name in STEPS if name in root and np.ndim(root[name]) == 0), None)
    parts.step = int(steps) if isinstance(steps, int | np.ndarray | np.generic) else None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, Mapping) and found and not weights_only:
        _optimizer(found, parts)
    _about(parts)
    return parts


def bare(tree: Tree) -> Tree:
    """A tree without the `value` that Orbax writes below each of NNX's variables."""
    leaves = list(flat(tree))
    if not all(at[-1] == "value" and len(at) > 1 for at, _ in leaves):
        return tree
    return nested((at[:-1], value) for at, value in leaves)


def _holder(path: Any, root: Tree, row: Format, key: str | None) -> tuple[Tree, list[str]]:
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
        if at is None or (row.name != "torch" and not _only_training(holder, at)):
            break
        if more := [n for n in NESTED if n != at and isinstance(holder.get(n), Mapping)]:
            notes.append(f"taken from {at}; the file holds {', '.join(more)} too (--key takes another)")
        holder = holder[at]
    if not isinstance(holder, Mapping) or not holder:
        raise WeightsError(f"weights {path}: got {type(holder).__name__}, expected a state_dict")
    return cast(Tree, holder), notes


def _only_training(holder: Mapping[str, Any], at: str) -> bool:
    return all(name == at or name in (*NESTED, *OPTIMIZER, *STEPS) for name in holder)


def _weights(path: Any, holder: Tree, row: Format) -> dict[str, np.ndarray]:
    tree = holder
    if isinstance(holder.get("params"), Mapping):
        tree = {n: v for n, v in holder.items() if isinstance(v, Mapping) and n not in (*NESTED, *OPTIMIZER)}
    elif row.name == "torch" and not any(isinstance(v, Mapping) and _is_tree(v) for v in holder.values()):
        other = [f"{name} ({type(v).__name__})" for name, v in holder.items() if not is_array(v)]
        if other:
            raise WeightsError(f"weights {path}: {other[0]} is no tensor; expected a state_dict of tensors")
    weights: dict[str, np.ndarray] = {}
    for at, value in flat(tree):
        if other := [part for part in at if not isinstance(part, str)]:
            raise WeightsError(f"weights {path}: got a tensor named {other[0]!r}, expected text")
        name = ".".join(at)
        if not is_array(value):
            raise WeightsError(f"weights {path}: {name} ({type(value).__name__}) is no tensor")
        if name in weights:
            raise WeightsError(f"weights {path}: two tensors are named {name}")
        weights[name] = value
    return weights


def _is_tree(node: Mapping[Any, Any]) -> bool:
    """Whether all leaves are tensors."""
    leaves = [value for _, value in flat(node)]
    return bool(leaves) and all(is_array(value) for value in leaves)


def _split_flat(path: Any, content: Content) -> Parts:
    parts = Parts({}, metadata=content.metadata)
    state = {n for n in content.tree if n.startswith(PREFIX)} if PREFIX + STEP in content.tree else set()
    for name, array in content.tree.items():
        if name not in state:
            parts.weights[name] = array
        elif name == PREFIX + STEP:
            parts.step = int(np.asarray(array))
        else:
            slot, _, parameter = name.removeprefix(PREFIX).partition("/")
            parts.slots.setdefault(slot, {})[parameter] = array
    if not parts.weights:
        raise WeightsError(f"weights {path}: holds no tensors")
    _about(parts)
    return parts


def _about(parts: Parts) -> None:
    """What the metadata say of the optimizer."""
    try:
        parts.options = parts.options or json.loads(parts.metadata.get("optimizer", "null"))
        parts.stateless = tuple(json.loads(parts.metadata.get("stateless", "[]")))
    except (ValueError, TypeError):
        parts.notes.append("what the metadata say of the optimizer cannot be read")


def _optimizer(found: Mapping[str, Any], parts: Parts) -> None:
    """The state, in whichever form it stands there."""
    if "param_groups" in found:
        parts.torch = dict(found)
        groups = [g for g in found["param_groups"] if isinstance(g, Mapping)]
        parts.options = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in groups]
        return
    if isinstance(found.get("opt_state"), Mapping):  # nnx.Optimizer's
        parts.step = int(found[STEP]) if STEP in found else parts.step
        found = found["opt_state"]
    if STEP in found and all(isinstance(v, Mapping) or n == STEP for n, v in found.items()):
        parts.step = int(found[STEP])
        parts.slots = {slot: dict(_joined(tree)) for slot, tree in found.items() if slot != STEP}
        return
    taken: set[tuple[str, ...]] = set()
    counts: set[int] = set()
    for at, node in _tables((), found):
        trees = None
        if "tensors" in node and "count" in node and isinstance(node["tensors"], Mapping | type(None)):
            trees = dict(node["tensors"] or {})
            taken |= {(*at, "tensors", *p) for p, _ in flat(node["tensors"] or {})}
        else:
            for fields, names in OPTAX:
                if set(fields) <= set(node) and all(isinstance(node[f], Mapping) for f in names):
                    trees = {new: node[old] for old, new in names.items()}
                    taken |= {(*at, old, *p) for old in names for p, _ in flat(node[old])}
                    break
        if "count" in node and np.ndim(node["count"]) == 0:
            counts.add(int(node["count"]))
            taken.add((*at, "count"))
        if trees:
            if double := set(trees) & set(parts.slots):
                raise WeightsError(f"optimizer: {', '.join(double)} stand there twice")
            parts.slots |= {slot: dict(_joined(tree)) for slot, tree in trees.items()}
    if left := [".".join(p) for p, v in flat(found) if p not in taken and isinstance(v, np.ndarray)]:
        raise WeightsError(
            f"optimizer: {left[0]} and {len(left) - 1} more belong to no state known here (ports.optim; optax's adam "
            "and momentum); --weights-only leaves the optimizer out"
        )
    if len(counts) > 1:
        raise WeightsError(f"optimizer: counts {sorted(counts)} steps at once, expected one number")
    parts.step = counts.pop() if counts else parts.step


def _tables(at: tuple[str, ...], node: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    yield at, node
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _tables((*at, key), value)


def _joined(tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for at, value in flat(tree):
        yield ".".join(map(str, at)), value
