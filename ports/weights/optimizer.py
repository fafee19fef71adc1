"""Optimizer states in the hub form: `exp_avg/conv1.weight` with PyTorch's names and layouts, and `step`.

    state = optimizer.read(torch_optimizer, torch_net)
    opt_state = optimizer.write(tx.init(params), nnx_net, state)    # tx of `ports.optim`; and the other way round

A tensor of a state has the shape of its parameter and moves as the parameter does (`layers.py`). A parameter that never
got a gradient has no state in PyTorch and zeros in optax.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ports.weights.hub import WeightsError

STEP = "step"


def read(state: Any, net: Any, steps: int | None = None) -> dict[str, np.ndarray]:
    """The state of an optimizer: copies, every bit kept.

    Args:
        state: a `torch.optim.Optimizer`, or the state of a transform of `ports.optim`, also within `optax.chain`.
        net: the network that it trains, as in `ports.weights.read`.
        steps: of PyTorch's SGD the number of steps done, which it does not keep; a schedule goes on from there.

    Raises:
        WeightsError: a parameter that is none of the network's, step counts that differ between parameters.
    """
    if _is_torch(state):
        return _read_torch(state, net, steps)
    held = _find(state)
    result = {STEP: np.array(held.count, np.int64)}
    for name, tree in held.tensors.items():
        result |= {f"{name}/{hub}": array for hub, array in _as_weights(net, tree).items()}
    return result


def write(state: Any, net: Any, values: Mapping[str, np.ndarray]) -> Any:
    """Puts a state in the hub form into an optimizer: all of it, or nothing where it does not fit.

    Args:
        state: as in `read`; for optax a state of the right transform: `tx.init(params)`.

    Returns:
        None for PyTorch, whose optimizer is changed in place; the new state for optax.

    Raises:
        WeightsError: all problems at once: tensors that are missing, left over, or of another shape.
    """
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for key, array in values.items():
        if key != STEP:
            name, _, hub = key.partition("/")
            tensors.setdefault(name, {})[hub] = np.asarray(array)
    if STEP not in values:
        raise WeightsError(f"{STEP}: missing from the state")
    step = int(values[STEP])
    if _is_torch(state):
        return _write_torch(state, net, step, tensors)
    return _write_optax(state, net, step, tensors)


def _is_torch(state: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(state, torch.optim.Optimizer)


def _named(optimizer: Any, net: Any) -> dict[str, Any]:
    """The optimizer's parameters by their names in the network."""
    names = {id(p): name for name, p in net.named_parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if strange := sum(id(p) not in names for p in params):
        raise WeightsError(f"{strange} of {len(params)} parameters of the optimizer are none of the network's")
    return {names[id(p)]: p for p in params}


def _read_torch(optimizer: Any, net: Any, steps: int | None) -> dict[str, np.ndarray]:
    from ports.weights.pytorch import to_numpy

    result: dict[str, np.ndarray] = {}
    counts: dict[int, str] = {}
    for name, p in _named(optimizer, net).items():
        for key, value in optimizer.state.get(p, {}).items():
            if key == STEP:
                counts.setdefault(int(value), name)
            elif value is not None:
                result[f"{key}/{name}"] = to_numpy(value)
    if len(counts) > 1:
        said = ", ".join(f"{name}: {count}" for count, name in counts.items())
        raise WeightsError(f"{STEP}: got {said}; expected one number of steps: optax keeps one for all parameters")
    if steps is not None and counts and steps not in counts:
        raise WeightsError(f"{STEP}: got steps={steps}, the optimizer has done {next(iter(counts))}")
    known = next(iter(counts), steps)
    if known is None and result:
        raise WeightsError(f"{STEP}: {type(optimizer).__name__} does not count its steps; give steps=, the number done")
    return {STEP: np.array(known or 0, np.int64), **result}


def _expected(optimizer: Any) -> set[str]:
    """The tensors that PyTorch's optimizer keeps with the options of its first group."""
    group, kind = optimizer.param_groups[0], type(optimizer).__name__
    table = {
        "SGD": {"momentum_buffer": group.get("momentum")},
        "RMSprop": {"square_avg": True, "momentum_buffer": group.get("momentum"), "grad_avg": group.get("centered")},
        "Adagrad": {"sum": True},
    }
    adam = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": group.get("amsgrad")}
    return {name for name, on in table.get(kind, adam).items() if on}


def _write_torch(optimizer: Any, net: Any, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    import torch

    from ports.weights.pytorch import to_torch

    params, expected, problems = _named(optimizer, net), _expected(optimizer), []
    problems += [f"{n}: missing from the state" for n in expected - set(tensors) if step]
    problems += [f"{n}: {type(optimizer).__name__} with these options keeps none" for n in set(tensors) - expected]
    for name, arrays in tensors.items():
        for hub, array in arrays.items():
            if hub not in params:
                problems.append(f"{name}/{hub}: the optimizer has no such parameter")
            elif tuple(params[hub].shape) != array.shape:
                problems.append(f"{name}/{hub}: got shape {array.shape}, expected {tuple(params[hub].shape)}")
    if problems:
        raise WeightsError(problems)
    counts = type(optimizer).__name__ != "SGD"
    for hub, p in params.items():
        own = {name: to_torch(arrays[hub]).to(p.dtype) for name, arrays in tensors.items() if hub in arrays}
        if own:
            optimizer.state[p] = {**({STEP: torch.tensor(float(step))} if counts else {}), **own}


def _find(state: Any) -> Any:
    """The one state of `ports.optim` in a nested state."""
    from ports.optim import State

    if isinstance(state, State):
        return state
    found = [_find(part) for part in state if isinstance(part, tuple)] if isinstance(state, tuple) else []
    held = [one for one in found if one is not None]
    if len(held) > 1:
        raise WeightsError(f"got {len(held)} optimizer states in one, expected one")
    return held[0] if held else None


def _replaced(state: Any, old: Any, new: Any) -> Any:
    if state is old:
        return new
    if isinstance(state, tuple):
        parts = [_replaced(part, old, new) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _write_optax(state: Any, net: Any, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    import jax.numpy as jnp

    held = _find(state)
    if held is None:
        raise WeightsError(f"got {type(state).__name__}, expected the state of a transform of ports.optim")
    problems = [f"{n}: missing from the state" for n in held.tensors if n not in tensors and step]
    problems += [f"{n}: the transform with these options keeps none" for n in tensors if n not in held.tensors]
    new = {}
    for name, tree in held.tensors.items():
        start = _as_weights(net, tree)
        given = tensors.get(name, {})
        problems += [f"{name}/{hub}: the network has no such parameter" for hub in given if hub not in start]
        for hub, array in given.items():
            if hub in start and start[hub].shape != array.shape:
                problems.append(f"{name}/{hub}: got shape {array.shape}, expected {start[hub].shape}")
        if not problems:
            new[name] = _as_tree(net, tree, {**start, **given})
    if problems:
        raise WeightsError(problems)
    return _replaced(state, held, held._replace(count=jnp.array(step, held.count.dtype), tensors=new))


def _standing_in(net: Any, tree: Any) -> tuple[Any, Any, list[str]]:
    """A copy of the network with a tree in the place of its parameters, its port, and its parameters' names."""
    if isinstance(net, tuple):
        from ports.weights import linen as port

        copy: Any = (net[0], {**net[1], "params": tree})
    else:
        from flax import nnx

        from ports.weights import nnx as port

        copy = nnx.clone(net)
        nnx.update(copy, tree)
    names = [n for n, p in port.places(copy).items() if p.leaf.collection == "params" and p.slots]  # pyright: ignore
    return copy, port, names


def _as_weights(net: Any, tree: Any) -> dict[str, np.ndarray]:
    """A tree like the parameters, by PyTorch's names and in its layouts."""
    copy, port, names = _standing_in(net, tree)
    values = port.read(copy)
    return {name: values[name] for name in names}


def _as_tree(net: Any, tree: Any, values: Mapping[str, np.ndarray]) -> Any:
    """The way back."""
    copy, port, _ = _standing_in(net, tree)
    whole = {**port.read(copy), **values}
    if isinstance(net, tuple):
        return port.write(copy, whole)["params"]
    from flax import nnx

    port.write(copy, whole)
    return nnx.state(copy, nnx.Param)
