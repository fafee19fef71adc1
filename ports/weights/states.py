"""Optimizer states between the forms that files keep them in: `torch.optim`'s numbers, flat names, optax's trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ports.weights.formats import Tree, nested
from ports.weights.hub import WeightsError
from ports.weights.optimizer import STEP
from ports.weights.training import PREFIX, Parts


def number_to_name(parts: Parts, parameters: list[str]) -> None:
    """`torch.optim`'s tensors by their parameter's name; `parameters` stand in the file's order.

    Raises:
        WeightsError: which parameter a number means cannot be told, or another number of steps for each.
    """
    state = parts.torch
    if state is None:
        return
    groups = state["param_groups"]
    numbers = [n for group in groups for n in group.get("params", [])]
    named = [n for group in groups for n in group.get("param_names", [])]
    if len(named) == len(numbers) > 0:
        names = dict(zip(numbers, named, strict=True))
    elif len(groups) == 1 and len(numbers) == len(parameters):
        names = dict(zip(numbers, parameters, strict=True))
    else:
        raise WeightsError(
            f"optimizer: {len(numbers)} parameters in {len(groups)} groups without names, the network has "
            f"{len(parameters)}; make it from net.named_parameters(), which keeps the names, or --weights-only"
        )
    counts: set[int] = set()
    for number, values in state.get("state", {}).items():
        if number not in names:
            raise WeightsError(f"optimizer: a state for parameter {number}, which no group has")
        for slot, value in values.items():
            if slot == STEP:
                counts.add(int(value))
            elif isinstance(value, np.ndarray):
                parts.slots.setdefault(slot, {})[names[number]] = value
            elif value is not None:
                raise WeightsError(
                    f"optimizer: {slot} of {names[number]}: got {type(value).__name__}, expected a tensor"
                )
    if len(counts) > 1:
        raise WeightsError(
            f"optimizer: {sorted(counts)} steps, expected one number: optax keeps one for all parameters"
        )
    parts.step = counts.pop() if counts else parts.step


def groups_of(parts: Parts, hub: Mapping[str, str], bare: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The optimizer's groups for the metadata: options, and the hub names of their parameters.

    Args:
        hub: hub names by the file's.
        bare: the file's names by what else they may be called.
    """
    if parts.torch is None:
        return parts.options
    file = list(hub)
    groups = []
    for group in parts.torch["param_groups"]:
        numbers = group.get("params", [])
        names = group.get("param_names") or [file[n] for n in numbers if n < len(file)]
        plain = {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({**plain, "param_names": [hub.get(bare.get(name, name), name) for name in names]})
    return groups


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers in arrays and other scalars as numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def torch_state(state: Mapping[str, np.ndarray], parameters: list[str], options: list[dict] | None) -> Tree:
    """`torch.optim`'s state_dict of a state in the hub form.

    Args:
        parameters: in the network's order.
        options: the groups as `groups_of` gives them; one group without options where they are not known.
    """
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.items():
        if key != STEP:
            slot, _, name = key.partition("/")
            slots.setdefault(slot, {})[name] = array
    counted = any(slot != "momentum_buffer" for slot in slots)
    groups = [dict(group) for group in options or [{}]]
    named = [name for group in groups for name in group.get("param_names", [])]
    if sorted(named) != sorted(parameters):
        groups = [{**groups[0], "param_names": parameters}]
        named = parameters
    held: dict[int, Tree] = {}
    for i, name in enumerate(named):
        own = {slot: arrays[name] for slot, arrays in slots.items() if name in arrays}
        if own:
            held[i] = {**({STEP: np.array(float(state[STEP]), np.float32)} if counted else {}), **own}
    at = 0
    for group in groups:
        group["params"] = list(range(at, at + len(group["param_names"])))
        at += len(group["param_names"])
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    return {"state": held, "param_groups": groups}


def flat_state(trees: Mapping[str, Mapping[tuple[str, ...], np.ndarray]], step: int) -> dict[str, np.ndarray]:
    """A state as a flat format holds it."""
    result: dict[str, np.ndarray] = {PREFIX + STEP: np.array(step, np.int64)}
    for slot, leaves in trees.items():
        result |= {f"{PREFIX}{slot}/{'.'.join(at)}": array for at, array in leaves.items()}
    return result


def optax_state(trees: Mapping[str, Mapping[tuple[str, ...], np.ndarray]], step: int) -> Tree:
    """A state as `flax.serialization` writes that of `ports.optim`."""
    if step >= 2**31:
        raise WeightsError(f"optimizer: {step:,} steps do not fit optax's int32")
    tensors = {slot: nested(leaves.items()) for slot, leaves in trees.items()}
    return {"count": np.array(step, np.int32), "tensors": tensors}
