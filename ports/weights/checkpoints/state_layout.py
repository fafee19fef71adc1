"""Optimizer states between the torch form and files: their metadata, what may be missing, and their layout.

`stored_states.py` reads a state out of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ports.optimizers import OPTIMIZERS, KnownOptimizer
from ports.weights.checkpoints.splitting import PREFIX
from ports.weights.checkpoints.stored_states import DEPTH, Group, Resolved, are_names, is_array
from ports.weights.files.formats import Tree, nested
from ports.weights.form.torch_form import WeightsError, describe
from ports.weights.optimizer.table import LARGEST, STEP, WEIGHTS_ONLY, exact, expected, of_groups, problems, shown

OPTIONS = frozenset().union(*(row.options for row in OPTIMIZERS))


def about(metadata: Mapping[str, str]) -> tuple[list[Group] | None, tuple[str, ...]]:
    """Read the metadata of the optimizer: its groups, and the parameters that never got a gradient.

    Raises:
        WeightsError: this package does not write such metadata.
    """
    groups = _json(metadata, "optimizer")
    if groups is not None:
        plain = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
        if not plain or not all(are_names(group.get("param_names", [])) for group in groups):
            raise _unlike("optimizer", "a list of groups with param_names", groups)
    stateless = _json(metadata, "stateless")
    if stateless is not None and not are_names(stateless):
        raise _unlike("stateless", "a list of parameters' names", stateless)
    return groups, tuple(stateless or ())


def counters(metadata: Mapping[str, str], needed: Sequence[str]) -> dict[str, int]:
    """BatchNorm's counters, for which Flax has no place.

    Args:
        needed: the names of the counters that the file keeps nowhere else.

    Raises:
        WeightsError: this package does not write such metadata.
    """
    found = _json(metadata, "counters") if needed else None
    if found is None:
        return {}
    whole = isinstance(found, dict) and all(type(n) is int and -LARGEST - 1 <= n <= LARGEST for n in found.values())
    if not whole:
        raise _unlike("counters", "a table of whole numbers by name", found, "")
    if lacking := [name for name in needed if name not in found]:
        raise WeightsError(f"metadata counters: {describe(lacking)}: missing; the file says it of other BatchNorms")
    return found


def counter(name: str, value: object) -> int:
    """A BatchNorm's counter for the metadata: any whole number of int64.

    Raises:
        WeightsError: another number, or several.
    """
    count = exact(value)
    if count is None or not -LARGEST - 1 <= count <= LARGEST:
        raise WeightsError(f"{name}: got {shown(value)}, expected one whole number: Flax has no tensor for it")
    return count


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, TypeError, RecursionError):
        raise _unlike(key, "JSON", metadata[key], f"; {WEIGHTS_ONLY}" if key != "counters" else "") from None


def _unlike(key: str, expected: str, got: object, hint: str = f"; {WEIGHTS_ONLY}") -> WeightsError:
    return WeightsError(f"metadata {key}: got {shown(got)}, expected {expected}{hint}")


def groups_of(
    resolved: Resolved, torch_names: Mapping[str, tuple[str, ...]], bare: Mapping[str, str]
) -> list[Group] | None:
    """The optimizer's groups for the metadata: options, and the PyTorch names of their parameters.

    Args:
        torch_names: PyTorch names by the file's names.
        bare: the file's names by their other possible names.
    """
    if resolved.groups is None:
        return resolved.options
    groups = []
    for group in resolved.groups:
        plain = {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")}
        given = (torch_names.get(bare.get(name, name), (name,)) for name in group["param_names"])
        groups.append({**plain, "param_names": [*chain.from_iterable(given)]})
    return groups


def _plain(value: object, depth: int = 0) -> Any:
    """Return a value that JSON can hold: numbers in arrays and other scalars become numbers."""
    if is_array(value):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple) and depth < DEPTH:
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, Mapping) and depth < DEPTH:
        return {str(key): _plain(one, depth + 1) for key, one in value.items()}
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def complete(
    tensors: Mapping[str, Mapping[str, Any]], groups: list[Group] | None, parameters: list[str], excused: set[str]
) -> None:
    """Refuse a state that lacks a tensor.

    Args:
        tensors: by the optimizer's name for them, then by the parameter's PyTorch name.
        groups: with PyTorch names; None if the file does not have them.
        parameters: the network's.
        excused: parameters that are known never to have had a gradient: they may lack all of their tensors.

    Raises:
        WeightsError: what is missing, and for which parameters.
    """
    named = [name for group in groups or [] for name in group.get("param_names", [])]
    if strange := [name for name in named if name not in parameters]:
        raise WeightsError(f"optimizer: {describe(strange)}: the network has no such parameter; {WEIGHTS_ONLY}")
    expected = _expected(tensors, groups if named else None, parameters)
    wrong = problems(tensors, expected, bool(tensors), excused, "the optimizer", surplus=False)
    if wrong:
        raise WeightsError(f"optimizer: {'; '.join(wrong)}; {WEIGHTS_ONLY}")


def without_fillers(
    tensors: Mapping[str, Mapping[str, Any]], groups: list[Group] | None, stateless: set[str]
) -> dict[str, dict[str, Any]]:
    """The tensors without the zeros that fill Flax's trees where PyTorch has no tensor.

    Args:
        groups: with PyTorch names; options that switch a tensor off, and parameters in no group, have none in PyTorch.
        stateless: parameters that never got a gradient.
    """
    named = any(group.get("param_names") for group in groups or [])
    row = of_groups(groups, tensors) if groups and named else None
    wanted = {name: _wanted(row, group) for group in groups or [] if row for name in group.get("param_names", [])}

    def fills(slot: str, name: str, array: object) -> bool:
        spare = name in stateless or (row is not None and slot not in wanted.get(name, ()))
        return spare and not np.any(np.asarray(array))

    return {slot: {n: a for n, a in arrays.items() if not fills(slot, n, a)} for slot, arrays in tensors.items()}


def _expected(tensors: Mapping[str, Any], groups: list[Group] | None, parameters: list[str]) -> dict[str, set[str]]:
    """The tensors of each parameter, by its group's options; without options, those that the optimizer always keeps."""
    plain = groups or [{"param_names": parameters}]
    try:
        row = of_groups(plain, tensors)
    except WeightsError:
        if groups is not None:
            raise
        return {name: set(tensors) for name in parameters}  # a transform of the user's own
    return {name: _wanted(row, group) for group in plain if row is not None for name in group["param_names"]}


def _wanted(row: KnownOptimizer, group: Group) -> set[str]:
    return expected(row, group) if row.own <= set(group) else row.always


def torch_state(state: Mapping[str, np.ndarray], parameters: list[str], options: list[Group] | None) -> Tree:
    """`torch.optim`'s state_dict of a state in the torch form.

    Args:
        parameters: in the network's order.
        options: the groups as `groups_of` gives them; one group without options if they are not known.

    Raises:
        WeightsError: PyTorch has no such optimizer, or cannot count so many steps.
    """
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.items():
        if key != STEP:
            slot, _, name = key.partition("/")
            slots.setdefault(slot, {})[name] = array
    groups = _numbered(options, parameters)
    row = of_groups(groups, slots)
    step = int(state[STEP])
    counter = {STEP: np.array(step, np.float32)} if row is not None and row.counts else {}
    if counter and int(counter[STEP]) != step:
        raise WeightsError(f"optimizer: {step:,} steps do not fit PyTorch's float32; {WEIGHTS_ONLY}")
    tables: dict[int, Tree] = {}
    for number, name in ((n, name) for group in groups for n, name in _members(group)):
        if own := {slot: arrays[name] for slot, arrays in slots.items() if name in arrays}:
            tables[number] = {STEP: counter[STEP].copy(), **own} if counter else own
        elif row is not None and row.eager:
            raise WeightsError(
                f"optimizer: no state for {name}: PyTorch's {row.name} goes on from none; {WEIGHTS_ONLY}"
            )
    return {"state": tables, "param_groups": groups}


def _members(group: Group) -> Iterator[tuple[int, str]]:
    return zip(group["params"], group["param_names"], strict=True)


def _numbered(options: list[Group] | None, parameters: list[str]) -> list[Group]:
    """The groups with PyTorch's numbers; a parameter of the network that is in no group is not trained."""
    groups = [dict(group) for group in options or [{}]]
    if not any(group.get("param_names") for group in groups):
        if len(groups) > 1:
            raise WeightsError(f"optimizer: {len(groups)} groups without names of parameters; {WEIGHTS_ONLY}")
        groups[0]["param_names"] = parameters
    at = 0
    for group in groups:
        group["param_names"] = list(group.get("param_names", []))
        group["params"] = list(range(at, at + len(group["param_names"])))
        at += len(group["param_names"])
        # JSON only has lists; PyTorch's options are tuples
        group.update({key: tuple(value) for key, value in group.items() if key in OPTIONS and isinstance(value, list)})
    return groups


def flat_state(trees: Mapping[str, Mapping[tuple[str, ...], Any]], step: int) -> dict[str, Any]:
    """A state as a flat format holds it."""
    result: dict[str, Any] = {PREFIX + STEP: np.array(step, np.int64)}
    for slot, leaves in trees.items():
        result |= {f"{PREFIX}{slot}/{'.'.join(at)}": array for at, array in leaves.items()}
    return result


def optax_state(trees: Mapping[str, Mapping[tuple[str, ...], Any]], step: int) -> Tree:
    """A state in the form in which `flax.serialization` writes one of `ports.optim`."""
    if step >= 2**31:
        raise WeightsError(f"optimizer: {step:,} steps do not fit optax's int32; {WEIGHTS_ONLY}")
    tensors = {slot: nested(leaves.items()) for slot, leaves in trees.items()}
    return {"count": np.array(step, np.int32), "tensors": tensors}
