"""Find the row of `ports.optimizers` for a live optimizer or a file, and what its state must hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ports.optimizers import CLASSES, MARKS, NODES, OPTAX, OPTIMIZERS, KnownOptimizer, Node, class_of
from ports.weights.form.torch_form import WeightsError, describe

STEP = "step"
LARGEST = 2**63 - 1
WEIGHTS_ONLY = "--weights-only leaves the optimizer out"


KNOWN = ", ".join(CLASSES)
KNOWN_OPTAX = f"ports.optim, or of optax's {', '.join(OPTAX)}"
BY_CLASS = {row.name: row for row in NODES}


def node_of(state: Any) -> Node | None:
    """The row of a live state's class."""
    package = type(state).__module__.partition(".")[0]
    return BY_CLASS.get(f"{package}.{type(state).__name__}")


def trees_of(row: Node, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the trees of a NamedTuple by PyTorch's names; a file may have names that are not text.

    Args:
        values: its fields.

    Raises:
        WeightsError: a field does not hold the dict of trees that it should.
    """
    trees: dict[Any, Any] = {}
    for name, slot in row.tensors.items():
        if slot != "*":
            trees[slot] = values[name]
        elif isinstance(named := values.get(name), Mapping):
            trees |= named
        elif named is not None:
            raise WeightsError(f"optimizer: {name}: got {shown(named)}, expected a table; {WEIGHTS_ONLY}")
    return trees


def expected(row: KnownOptimizer, group: Mapping[str, Any]) -> set[str]:
    """Return the tensors of a parameter in a group with these options.

    Raises:
        WeightsError: an option that switches a tensor on is neither a number nor true or false.
    """
    return {name for name, option in row.tensors.items() if option is None or _is_on(option, group.get(option))}


def of_torch(optimizer: Any) -> KnownOptimizer:
    """The row of a live PyTorch optimizer: of its class, or of a subclass that computes the same.

    Raises:
        WeightsError: another class.
    """
    name, kind = class_of(optimizer), type(optimizer)
    for row in OPTIMIZERS:
        if name in row.classes:
            return row
    got = f"{kind.__module__}.{kind.__qualname__}"
    raise WeightsError(f"optimizer: got {got}, expected one of torch.optim's {KNOWN}, whose states are known")


def of_groups(groups: Iterable[Mapping[str, Any]], slots: Iterable[object]) -> KnownOptimizer | None:
    """The row of a state in a file, by the options of its groups and the names of its tensors.

    Returns: None if there are neither options nor tensors.

    Raises:
        WeightsError: no row fits, or several do.
    """
    keys = [set(group) - {"params", "param_names"} for group in groups]
    common, slots = set.intersection(*keys) if keys else set(), set(slots)
    if not any(keys) and not slots:
        return None
    rows = [row for row in OPTIMIZERS if slots <= set(row.tensors) and (not slots or row.always <= slots)]
    if any(keys):
        marked = {name for key, name in MARKS.items() if key in common}
        rows = [row for row in rows if _needed(row) <= common and marked <= set(row.classes)]
        # Adam has all options of Adamax and one more, so the row that explains more options is the right one.
        rows = [row for row in rows if not any(row.own < other.own for other in rows)]
    if len(rows) == 1:
        return rows[0]
    guess = next((f", which are {name}'s" for key, name in MARKS.items() if key in common), "")
    raise WeightsError(
        f"optimizer: got the options {describe(sorted(map(str, common)), 12) or '(not known)'} and the tensors "
        f"{describe(sorted(map(str, slots))) or '(no tensors)'}{guess}; expected the state of {KNOWN}; {WEIGHTS_ONLY}"
    )


def _needed(row: KnownOptimizer) -> frozenset[str]:
    """The options without which a group is not the row's: all of them if its own do not distinguish it."""
    return row.options if any(row.own < other.own for other in OPTIMIZERS) else row.own


def _is_on(option: str, value: Any) -> bool:
    if value is None or isinstance(value, bool | int | float):
        return bool(value)
    if hasattr(value, "dtype") and len(value.shape) == 0:
        return bool(value)
    raise WeightsError(f"optimizer: option {option}: got {type(value).__name__}, expected a number or true or false")


def whole_number(value: Any, what: str) -> int:
    """A number of steps: one number from 0 to int64's largest, without a fraction.

    Raises:
        WeightsError: anything else, with `what` in front.
    """
    if (count := exact(value)) is None or not 0 <= count <= LARGEST:
        raise WeightsError(f"{what}: got {shown(value)}, expected one whole number from 0 to {LARGEST:,}")
    return count


def exact(value: Any) -> int | None:
    """The integer value of a number, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) and not hasattr(value, "dtype"):
        return None
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iufV" or array.dtype.names:
        return None
    if array.dtype.kind in "iu":
        return int(array)
    try:
        number = float(array)
    except (TypeError, ValueError):  # raw bytes
        return None
    return int(number) if number.is_integer() else None


def shown(value: Any) -> str:
    """A value in a message: short, on one line, without control characters."""
    if isinstance(value, str | int | float | bool | type(None)):
        return ascii(value if not isinstance(value, int) or abs(value) < 10**30 else float("inf"))[:40]
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        number = f" {ascii(np.asarray(value)[()])[:40]}" if len(value.shape) == 0 else ""
        return f"an array {tuple(value.shape)} of {value.dtype}{number}"
    return type(value).__name__


def problems(
    tensors: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, set[str]],
    started: bool,
    stateless: Iterable[str],
    keeper: str,
    surplus: bool = True,
) -> list[str]:
    """The problems of a state: one line for each kind of tensor.

    Args:
        tensors: by their name in the state, then by parameter.
        expected: the tensors that the target keeps for each of its parameters.
        started: whether steps were done; before the first a state may be empty.
        stateless: parameters that never got a gradient; they may lack all of their tensors.
        keeper: the name of the target in messages.
        surplus: whether a tensor that the options switch off is wrong, too; PyTorch keeps such a tensor if the options
            changed.
    """
    found: list[str] = []
    kept = set().union(*expected.values()) if expected else set()
    for slot, arrays in tensors.items():
        if surplus and slot not in kept:
            found.append(f"{slot}: {keeper} with these options keeps no such tensor")
            continue
        if strange := [name for name in arrays if name not in expected]:
            found.append(f"{slot}/{describe(strange)}: {keeper} has no such parameter")
        more = [name for name in arrays if slot not in expected.get(name, {slot})] if surplus else []
        if more:
            found.append(f"{slot}/{describe(more)}: {keeper} with these options keeps no such tensor")
    own = {name: {slot for slot, arrays in tensors.items() if name in arrays} for name in expected}
    excused = {name for name in stateless if not own.get(name)}
    lacking = [n for n, slots in expected.items() if slots - own[n] and n not in excused and (own[n] or started)]
    for slot in sorted({slot for name in lacking for slot in expected[name] - own[name]}):
        names = [name for name in lacking if slot in expected[name] - own[name]]
        found.append(f"{slot}: missing from the state" + (f" for {describe(names)}" if slot in tensors else ""))
    return found
