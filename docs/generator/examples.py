"""Run the code of the traps' examples (`parity/traps/examples/`) in both frameworks."""

from __future__ import annotations

import ast
import functools
import math
from typing import Any

from parity.traps.examples import Example


def value(code: str, space: dict[str, Any]) -> Any:
    """Run code, and return the value of its last line: an expression, or what was assigned last."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(tree.body[:-1], []), "<example>", "exec"), space)
        return eval(compile(ast.Expression(last.value), "<example>", "eval"), space)
    exec(compile(tree, "<example>", "exec"), space)
    targets = [node.id for node in ast.walk(last) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return space[targets[0]] if targets else None


def in_flax(example: Example, code: str) -> Any:
    """Return what a piece of Flax code gives, in float64: the value, or its gradients."""
    return _in_flax(example.setup, example.given, example.use, example.gradient, code)


@functools.lru_cache(maxsize=64)  # many rows of a group share their right code
def _in_flax(setup: str, given: str, use: str, gradient: bool, code: str) -> Any:
    import jax

    with jax.enable_x64(True):
        space = flax_space()
        exec(setup, space)
        exec(given, space)
        if gradient:
            space["x"] = jax.numpy.asarray(space["x"])
            return np_tree(jax.grad(lambda x: value(code, {**space, "x": x}).sum())(space["x"]))
        space["code"] = code
        if use == "gradients(code)":
            return np_tree(gradients(code, space))
        found = value(code, space)
        return np_tree(eval(use, space) if use else found)


def gradients(code: str, space: dict[str, Any]) -> Any:
    """Return the gradients of the sum of squares of `y` by every input that is an array, and by the layer."""
    import jax
    from flax import nnx

    inputs = {name: space[name] for name in ("x", "sequence", "table") if name in space}
    graph, state = nnx.split(space["layer"])

    def loss(arrays: Any) -> Any:
        given, weights = arrays
        return (value(code, {**space, **given, "layer": nnx.merge(graph, weights)}) ** 2).sum()

    return jax.grad(loss)((inputs, state))


def in_torch(example: Example) -> Any:
    """Return what PyTorch's code gives in float64, in Flax's layout."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _in_torch(example)
    finally:
        torch.set_default_dtype(before)


def _in_torch(example: Example) -> Any:
    import torch

    flax, space = flax_space(), torch_space()
    exec(example.setup, flax)
    if example.place == "training":
        return trained_in_torch(example.torch, {**space, "lr": flax["lr"], "wd": flax["wd"]})
    for name in (name for name in example.names if name in flax):
        space[name] = channels_first(torch.from_numpy(flax[name])) if example.images else torch.from_numpy(flax[name])
    if example.gradient:
        space["x"].requires_grad_()
        value(example.torch, space).sum().backward()
        return space["x"].grad.numpy()
    found = value(example.torch, space)
    return (channels_last(found) if example.images else found).numpy()


def channels_first(x: Any) -> Any:
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def channels_last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def np_tree(found: Any) -> Any:
    """Return the arrays of a tree, or a module's variables, as one list of numpy arrays."""
    import jax
    import numpy as np

    return [np.asarray(leaf, "float64") for leaf in jax.tree.leaves(found)]


def torch_space() -> dict[str, Any]:
    """Return the names that PyTorch's code may use."""
    import torch
    from torch import nn
    from torch.nn import functional

    return {"torch": torch, "nn": nn, "F": functional, "math": math, "optim": torch.optim}


def flax_space() -> dict[str, Any]:
    """Return the names that Flax code may use."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import linen, nnx

    from ports import losses, optim, schedules
    from ports.layers.nnx import BatchNorm

    libraries = {"jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "linen": linen, "optax": optax, "math": math}
    ours = {"losses": losses, "optim": optim, "schedules": schedules, "BatchNorm": BatchNorm}
    return {**libraries, **ours, "trained": trained, "rngs": nnx.Rngs(0)}


def _parameters() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return parameters, and their gradients in five steps."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {"w": (3, 2), "b": (2,), "idle": (2,)}
    first = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    steps = [{n: 4**-i * rng.standard_normal(s) * (n != "idle") for n, s in shapes.items()} for i in range(5)]
    return first, steps


def trained(tx: Any) -> Any:
    """Return the parameters after five steps."""
    import jax
    import optax

    first, steps = _parameters()
    params = jax.tree.map(jax.numpy.asarray, first)
    state = tx.init(params)
    for grads in steps:
        updates, state = tx.update(jax.tree.map(jax.numpy.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
    return params


def trained_in_torch(code: str, space: dict[str, Any]) -> Any:
    """Return the same of PyTorch's optimizer and scheduler."""
    import torch

    first, steps = _parameters()
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in sorted(first.items())}
    space = {**space, "params": list(tensors.values())}
    exec(code, space)
    for grads in steps:
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name])
        space["optimizer"].step()
        if "scheduler" in space:
            space["scheduler"].step()
    return [tensor.detach().numpy() for tensor in tensors.values()]
