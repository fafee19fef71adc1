"""Optimizer states in the torch form: `exp_avg/conv1.weight` with PyTorch's names and layouts, and `step`.

    state = optimizer.read(torch_optimizer, torch_net)
    opt_state = optimizer.write(tx.init(params), nnx_net, state)    # tx of `ports.optim`; and the other way round

A tensor of a state has the shape of its parameter and moves as the parameter does (`layers.py`). A parameter that never
got a gradient has no state in PyTorch and zeros in optax. `ports.optimizers` lists the optimizers that are known.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ports.optimizers import KnownOptimizer
from ports.weights.form.torch_form import Rule, WeightsError, lossless, renamed
from ports.weights.optimizer.form import OptimizerState, Tensors, agreed
from ports.weights.optimizer.table import STEP, expected, of_torch, problems, shown, whole_number


def read(state: Any, net: Any, steps: int | None = None) -> OptimizerState:
    """Return the state of an optimizer: copies, every bit kept.

    Args:
        state: a `torch.optim.Optimizer`, an `nnx.Optimizer`, or a state of optax: of a transform of `ports.optim`, or
            one of optax's that `ports.optimizers.OPTAX` names; chained, masked or injected.
        net: the network that it trains, as in `ports.weights.read`.
        steps: the number of steps done, which SGD does not keep; a schedule goes on from there.

    Raises:
        WeightsError: an optimizer that is not known, a parameter that the network does not have, a parameter that has
            only a part of its tensors, step counts that differ between parameters.
    """
    if _is_torch(state):
        return _read_torch(state, net, steps)
    from ports.weights.optimizer import transforms

    return transforms.read(state, net, steps)


def write(
    state: Any,
    net: Any,
    values: Mapping[str, Any],
    stateless: Collection[str] | None = None,
    *,
    rules: Sequence[Rule] = (),
) -> Any:
    """Write a state in the torch form into an optimizer: all of it, or nothing if it does not fit.

    Hyperparameters do not travel: the optimizer keeps the learning rate and the decay that it was made with.

    Args:
        state: as in `read`; for optax a state of the right transform: `tx.init(params)`.
        values: what `read` gave.
        stateless: the parameters that never got a gradient; by default those that `read` found.
        rules: the rules with which the weights were moved, if the network names its layers differently. Only `Rename`
            rules affect a state.

    Returns:
        None for PyTorch and `nnx.Optimizer`, which are changed in place; the new state for optax.

    Raises:
        WeightsError: all problems at once: tensors that are missing, left over, of another shape, or of a type that
            loses bits; a step that is not a whole number.
    """
    excused: Collection[str] = getattr(values, "stateless", ()) if stateless is None else stateless
    tensors = {slot: _renamed(arrays, rules) for slot, arrays in by_slot(values).items()}
    excused = renamed(excused, *rules).values()
    if STEP not in values:
        raise WeightsError(f"{STEP}: missing from the state")
    step = whole_number(values[STEP], STEP)
    if _is_torch(state):
        return _write_torch(state, net, step, tensors, excused)
    from ports.weights.optimizer import transforms

    return transforms.write(state, net, step, tensors, excused)


def _renamed(arrays: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    names = renamed(arrays, *rules)
    if len({*names.values()}) < len(names):
        twice = next(name for name, count in Counter(names.values()).items() if count > 1)
        raise WeightsError(f"{twice}: the rules rename two tensors of the state to it")
    return {names[name]: array for name, array in arrays.items()}


def by_slot(values: Mapping[str, Any]) -> Tensors:
    """The tensors of a state in the torch form by their name in the state, then by parameter."""
    tensors: Tensors = {}
    for key, array in values.items():
        if key != STEP:
            slot, _, name = key.partition("/")
            tensors.setdefault(slot, {})[name] = np.asarray(array)
    return tensors


def _is_torch(state: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(state, torch.optim.Optimizer)


def _named(optimizer: Any, net: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The name in the network, the parameter and the group of each parameter of the optimizer."""
    names = {id(p): name for name, p in net.named_parameters()}
    params = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if strange := sum(id(p) not in names for p, _ in params):
        raise WeightsError(
            f"{strange} of {len(params)} parameters of the optimizer are not in the network: give the network that "
            "it was made for"
        )
    return ((names[id(p)], p, group) for p, group in params)


def _read_torch(optimizer: Any, net: Any, steps: int | None) -> OptimizerState:
    from ports.weights.live.pytorch import to_numpy

    row, result, wrong = of_torch(optimizer), OptimizerState(), []
    counts: dict[int, str] = {}
    for name, p, group in _named(optimizer, net):
        own = {key: value for key, value in optimizer.state.get(p, {}).items() if value is not None}
        if STEP in own:
            step = own.pop(STEP)
            counts.setdefault(whole_number(to_numpy(step) if hasattr(step, "dtype") else step, f"{STEP}/{name}"), name)
        wrong += _unlike(row, name, p, own, group, bool(optimizer.state.get(p)))
        result |= {f"{key}/{name}": to_numpy(value) for key, value in own.items() if hasattr(value, "detach")}
    if wrong:
        raise WeightsError(wrong)
    result[STEP] = np.array(agreed(counts, steps, bool(result), type(optimizer).__name__), np.int64)
    having = {key.partition("/")[2] for key in result}
    result.stateless = frozenset(name for name, _ in net.named_parameters() if name not in having)
    return result


def _unlike(row: KnownOptimizer, name: str, p: Any, own: Mapping[str, Any], group: Any, begun: bool) -> list[str]:
    """The tensors of a parameter's state that its optimizer does not keep, and those that are missing."""
    wrong = [f"{key}/{name}: {row.name} keeps no such tensor" for key in own if key not in row.tensors]
    for key, value in own.items():
        if not hasattr(value, "detach") or value.shape != p.shape:
            wrong.append(f"{key}/{name}: got {shown(value)}, expected a tensor {tuple(p.shape)}")
    lacking = expected(row, group) - set(own) if own or row.eager or (begun and row.counts) else set()
    return wrong + [f"{key}/{name}: missing from the optimizer's state" for key in sorted(lacking)]


def _write_torch(optimizer: Any, net: Any, step: int, tensors: Tensors, stateless: Collection[str]) -> None:
    import torch

    from ports.weights.live.pytorch import to_numpy, to_torch

    row, params = of_torch(optimizer), {name: (p, group) for name, p, group in _named(optimizer, net)}
    wanted = {name: expected(row, group) for name, (_, group) in params.items()}
    begun = step > 0 or bool(tensors)
    wrong = problems(tensors, wanted, begun, () if row.eager else stateless, f"the optimizer ({row.name})")
    counted = torch.tensor(float(step))
    if row.counts and int(counted) != step:
        wrong.append(f"{STEP}: got {step:,}, which PyTorch's {counted.dtype} cannot hold exactly")
    cast: dict[str, dict[str, Any]] = {name: {} for name in params}
    for slot, arrays in tensors.items():
        for name in arrays.keys() & params.keys():
            array, p = arrays[name], params[name][0]
            value = lossless(array, to_numpy(p.new_empty(0)).dtype)
            if tuple(p.shape) != array.shape:
                wrong.append(f"{slot}/{name}: got shape {array.shape}, expected {tuple(p.shape)}")
            elif value is None:
                wrong.append(f"{slot}/{name}: got {array.dtype}, which loses bits in the parameter's {p.dtype}")
            else:
                cast[name][slot] = to_torch(value)
    if wrong:
        raise WeightsError(wrong)
    for name, (p, group) in params.items():
        if cast[name]:
            near = p.device if group.get("capturable") or group.get("fused") else "cpu"
            own = {STEP: counted.clone().to(near)} if row.counts else {}
            optimizer.state[p] = own | {slot: value.to(p.device) for slot, value in cast[name].items()}
        elif not row.eager:
            optimizer.state.pop(p, None)
