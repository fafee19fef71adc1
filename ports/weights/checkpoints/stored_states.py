"""Read the state of an optimizer out of a file: `torch.optim`'s numbers, names, `nnx.Optimizer`'s or optax's trees.

`splitting.split` finds the state. Here each tensor gets the name of its parameter as the file has it; `checkpoint.py`
brings it into the torch form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ports.optimizers import NODES
from ports.weights.checkpoints.splitting import Parts
from ports.weights.files.formats import flat
from ports.weights.form.torch_form import WeightsError, describe
from ports.weights.optimizer.table import KNOWN_OPTAX, STEP, WEIGHTS_ONLY, of_groups, shown, trees_of, whole_number

Group = dict[str, Any]
DEPTH = 40


@dataclass
class Resolved:
    """A state by the file's names.

    Attributes:
        slots: the tensors by the optimizer's name for them (`exp_avg`), then by parameter.
        step: the number of steps done, if the file has it.
        groups: `torch.optim`'s, with the parameters' names.
        options: the groups in the metadata, with the names of the torch form.
        stateless: parameters that never got a gradient, in the torch form.
        masked: names, or beginnings of names, of parameters that optax has masked.
        named: whether each tensor has the name of its parameter, as in PyTorch's layout.
    """

    slots: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int | None = None
    groups: list[Group] | None = None
    options: list[Group] | None = None
    stateless: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    named: bool = False
    notes: list[str] = field(default_factory=list)


def resolve(parts: Parts, parameters: list[str]) -> Resolved:
    """Read the state of an optimizer.

    Args:
        parameters: the file's names of the parameters, in the file's order, by which `torch.optim` numbers them.

    Raises:
        WeightsError: it is not the state of one known optimizer; the parameter of a number is not known; the step
            counts differ; a step is not a whole number.
    """
    stored, result = parts.stored, Resolved()
    if not isinstance(stored, Mapping):
        raise WeightsError(f"optimizer: got {len(stored)} states, expected one; {WEIGHTS_ONLY}")
    if "param_groups" in stored:
        _from_torch(stored, parameters, result)
    else:
        _from_trees(stored, result)
    if result.step is None and parts.counter is not None:
        result.step = _count(parts.counter, STEP)
    if strange := [s for s in result.slots if not isinstance(s, str) or "/" in s or s in ("", STEP)]:
        raise WeightsError(f"optimizer: got a tensor named {shown(strange[0])}, expected a name; {WEIGHTS_ONLY}")
    return result


def summary(parts: Parts) -> str:
    """Describe for a person which tensors a state has, and after how many steps.

    Raises:
        WeightsError: it cannot be read.
    """
    stored, result = parts.stored, Resolved()
    if isinstance(stored, Mapping) and "param_groups" in stored:
        tables = _torch_tables(stored)
        result.slots = {slot: {} for table in tables.values() for slot in _tensors(table)}
        result.step = _one_count(tables)
        if result.step is None and parts.counter is not None:
            result.step = _count(parts.counter, STEP)
    else:
        result = resolve(parts, [])
    tensors = describe(list(map(str, result.slots))) or "no tensors"
    return tensors + ("" if result.step is None else f", {result.step} steps")


def _count(value: object, what: str) -> int:
    try:
        return whole_number(value, f"optimizer: {what}")
    except WeightsError as error:
        raise WeightsError(f"{error}; {WEIGHTS_ONLY}") from None


def is_array(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _from_torch(stored: Mapping[Any, Any], parameters: list[str], result: Resolved) -> None:
    """`torch.optim`'s state_dict: the tensors of each parameter by its number."""
    tables, groups = _torch_tables(stored), _groups(stored["param_groups"])
    names = _names(groups, parameters)
    if strange := [number for number in tables if number not in names]:
        raise WeightsError(f"optimizer: a state for parameter {shown(strange[0])}, which no group has; {WEIGHTS_ONLY}")
    row = of_groups(groups, {s for table in tables.values() for s in _tensors(table)})
    lacking: list[str] = []
    for number, table in tables.items():
        tensors, name = _tensors(table), names[number]
        if row is not None and row.counts and bool(tensors) is not (STEP in table):
            lacking.append(f"{'tensors' if STEP in table else STEP} of {name}")
        for slot, value in tensors.items():
            if not is_array(value):
                raise WeightsError(
                    f"optimizer: {slot} of {name}: got {shown(value)}, expected a tensor; {WEIGHTS_ONLY}"
                )
            result.slots.setdefault(slot, {})[name] = value
    if lacking:
        raise WeightsError(f"optimizer: {describe(lacking)}: missing; {WEIGHTS_ONLY}")
    result.step = _one_count(tables)
    result.groups = [{**group, "param_names": [names[n] for n in group["params"]]} for group in groups]


def _tensors(table: Mapping[Any, Any]) -> dict[Any, Any]:
    return {slot: value for slot, value in table.items() if slot != STEP and value is not None}


def _torch_tables(stored: Mapping[Any, Any]) -> dict[Any, Mapping[Any, Any]]:
    """The table of each parameter that has a state."""
    state = stored.get("state", {})
    if not isinstance(state, Mapping) or not all(isinstance(values, Mapping) for values in state.values()):
        raise WeightsError(
            f"optimizer: state: got {shown(state)}, expected a table for each parameter's number; {WEIGHTS_ONLY}"
        )
    return dict(state)


def _one_count(tables: Mapping[Any, Mapping[Any, Any]]) -> int | None:
    values = [_count(table[STEP], f"{STEP} of parameter {shown(n)}") for n, table in tables.items() if STEP in table]
    if len(counts := sorted(set(values))) > 1:
        raise WeightsError(
            f"optimizer: {describe(map(str, counts))} steps, expected one number: optax keeps one for all parameters; "
            f"{WEIGHTS_ONLY}"
        )
    return counts[0] if counts else None


def _groups(groups: object) -> list[Group]:
    """The groups, each with its parameters' numbers.

    Raises:
        WeightsError: they are not as `torch.optim` makes them.
    """
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Mapping) for group in groups):
        raise WeightsError(f"optimizer: param_groups: got {shown(groups)}, expected a list of tables; {WEIGHTS_ONLY}")
    for group in groups:
        numbers, names = group.get("params"), group.get("param_names", [])
        if strange := [key for key in group if not isinstance(key, str)]:
            raise WeightsError(f"optimizer: got the option {shown(strange[0])}, expected text; {WEIGHTS_ONLY}")
        if not isinstance(numbers, list | tuple) or not all(isinstance(n, int | str) for n in numbers):
            raise WeightsError(f"optimizer: params: got {shown(numbers)}, expected a list of numbers; {WEIGHTS_ONLY}")
        if not are_names(names):
            raise WeightsError(f"optimizer: param_names: got {shown(names)}, expected a list of text; {WEIGHTS_ONLY}")
    return [dict(group) for group in groups]


def are_names(names: object) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


def _names(groups: Sequence[Group], parameters: list[str]) -> dict[Any, str]:
    """The parameter of each number."""
    numbers = [n for group in groups for n in group["params"]]
    named = [n for group in groups for n in group.get("param_names", [])]
    if len(set(numbers)) < len(numbers):
        double = next(n for n, count in Counter(numbers).items() if count > 1)
        raise WeightsError(f"optimizer: parameter {shown(double)} is in the groups twice; {WEIGHTS_ONLY}")
    if numbers and all(isinstance(n, str) for n in numbers):  # as torch.distributed writes it
        named = list(map(str, numbers))
    if len(set(named)) == len(numbers) == len(named) > 0:
        return dict(zip(numbers, named, strict=True))
    if len(groups) == 1 and len(numbers) == len(parameters) and not named:
        return dict(zip(numbers, parameters, strict=True))
    raise WeightsError(
        f"optimizer: {len(numbers)} parameters in {len(groups)} groups without names, the network has "
        f"{len(parameters)}; make it from net.named_parameters(), which keeps the names, or --weights-only"
    )


def _from_trees(stored: Mapping[Any, Any], result: Resolved) -> None:
    """A state by names: ours, `nnx.Optimizer`'s, or optax's own."""
    if isinstance(stored.get("opt_state"), Mapping):  # nnx.Optimizer's
        result.step = _count(stored[STEP], STEP) if STEP in stored else None
        stored = stored["opt_state"]
    if STEP in stored and all(isinstance(v, Mapping) or n == STEP for n, v in stored.items()):
        result.step = _count(stored[STEP], STEP)
        result.slots = {str(slot): _joined(tree, str(slot)) for slot, tree in stored.items() if slot != STEP}
        result.named = True
        return
    counts: list[int] = []
    masked: set[str] = set()
    _walk((), stored, result, counts, masked)
    if len(set(counts)) > 1:
        raise WeightsError(
            f"optimizer: counts {describe(map(str, sorted(set(counts))))} steps at once, expected one number; "
            f"{WEIGHTS_ONLY}"
        )
    result.step = counts[0] if counts else result.step
    result.masked = tuple(masked)


def _walk(at: tuple[str, ...], node: object, result: Resolved, counts: list[int], masked: set[str]) -> None:
    """Take the tensors and the counts out of a tree of optax's states."""
    if not isinstance(node, Mapping) or len(at) > DEPTH:
        if node is None:
            return
        raise WeightsError(
            f"optimizer: {'.'.join(at) or shown(node)}: not part of a known state (of {KNOWN_OPTAX}); {WEIGHTS_ONLY}"
        )
    row = next((row for row in NODES if row.fits(map(str, node))), None)
    for name in row.counts if row else ():
        counts.append(_count(node[name], ".".join((*at, name))))
    for name in row.pending if row else ():
        if waiting := _count(node[name], ".".join((*at, name))):
            raise WeightsError(
                f"optimizer: {waiting} gradients wait for their step, which no other framework has; {WEIGHTS_ONLY}"
            )
    if row and row.tensors:
        result.notes += [f"optimizer: {row.note}"] if row.note else []
        trees = {slot: tree for slot, tree in trees_of(row, node).items() if tree is not None}
        _take({slot: _joined(tree, slot, masked) for slot, tree in trees.items()}, result)
    inner = [name for name in row.inner if name in node] if row else list(node)
    for name in inner:
        _walk((*at, str(name)), node[name], result, counts, masked)


def _take(trees: Mapping[Any, Mapping[str, Any]], result: Resolved) -> None:
    """Add the tensors of one part of a state, which has only its own parameters."""
    names = {name for tree in trees.values() for name in tree}
    if double := sorted(names & {name for arrays in result.slots.values() for name in arrays}):
        raise WeightsError(f"optimizer: {describe(double)}: in two parts of the state, expected one; {WEIGHTS_ONLY}")
    for slot, tree in trees.items():
        result.slots.setdefault(slot, {}).update(tree)


def _joined(tree: object, slot: object, masked: set[str] | None = None) -> dict[str, Any]:
    """The arrays of a tree by their joined names; a file has `{}` for optax's masked parameters."""
    if not isinstance(tree, Mapping):
        raise WeightsError(f"optimizer: {slot}: got {shown(tree)}, expected a table of tensors; {WEIGHTS_ONLY}")
    result: dict[str, Any] = {}
    for at, value in flat(tree):
        name = ".".join(map(str, at))
        if not is_array(value) or name in result:
            wrong = "there twice" if name in result else f"got {shown(value)}, expected a tensor"
            raise WeightsError(f"optimizer: {slot}/{name}: {wrong}; {WEIGHTS_ONLY}")
        result[name] = value
    if masked is not None:
        masked |= set(_empty(tree, ()))
    return result


def _empty(tree: Mapping[Any, Any], at: tuple[str, ...]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            here = (*at, str(key))
            yield from _empty(value, here) if value else iter([".".join(here)])
