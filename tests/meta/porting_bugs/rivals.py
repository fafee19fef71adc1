"""Rules by which people accept a port today: outputs in eval mode and float32, and what each rule says of them.

Nothing here uses the check. A rule accepts or rejects; where a bfloat16 copy of a model cannot run, the rule about it
says nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn

# What a rule must keep to.
COSINE, DIVERGENCE, RATIO = 0.99, 0.015, 1.2

# Modes that signatures of Linen models have, in eval.
EVAL: dict[str, bool] = {"train": False, "training": False, "deterministic": True}


@dataclass(frozen=True)
class Outputs:
    """What both sides give: (..., classes), in PyTorch's layout.

    Attributes:
        reference: PyTorch's, in float32.
        port: Flax's, in float32.
        reference_bf16: PyTorch's in bfloat16; None where it does not run.
        port_bf16: Flax's in bfloat16.
    """

    reference: np.ndarray
    port: np.ndarray
    reference_bf16: np.ndarray | None = None
    port_bf16: np.ndarray | None = None


def outputs(reference: nn.Module, port: Any, arrays: tuple[np.ndarray, ...]) -> Outputs:
    """Run both sides in eval mode, in float32 and in bfloat16."""
    right = run_torch(reference, arrays, torch.float32)
    wrong = run_flax(port, arrays, jnp.float32, right)
    low = _or_none(lambda: run_torch(copy.deepcopy(reference).bfloat16(), arrays, torch.bfloat16))
    port_low = None if low is None else _or_none(lambda: run_flax(port, arrays, jnp.bfloat16, low))
    return Outputs(right, wrong, low, port_low)


def _or_none(run: Callable[[], np.ndarray]) -> np.ndarray | None:
    try:
        return run()
    except (RuntimeError, TypeError, ValueError):  # types that the model's code does not mix
        return None


def run_torch(model: nn.Module, arrays: tuple[np.ndarray, ...], dtype: torch.dtype) -> np.ndarray:
    """Return PyTorch's output as float64 numbers."""
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    with torch.no_grad():
        return first(model.eval()(*tensors)).double().numpy()


def run_flax(model: Any, arrays: tuple[np.ndarray, ...], dtype: Any, like: np.ndarray) -> np.ndarray:
    """Return Flax's output as float64 numbers, in PyTorch's layout."""
    given = [flax_array(array, dtype) for array in arrays]
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        net = nnx.merge(graph, jax.tree.map(lambda leaf: cast(leaf, dtype), state))
        net.eval()
        output = net(*given)
    else:
        module, variables = model
        variables = jax.tree.map(lambda leaf: cast(leaf, dtype), variables)
        output = module.apply(variables, *given, **modes(module))
    got = np.asarray(first(output).astype(jnp.float32), np.float64)
    return np.moveaxis(got, -1, 1) if got.ndim > 3 and got.shape != like.shape else got


def flax_array(array: np.ndarray, dtype: Any) -> jax.Array:
    """Return an input as Flax takes it: images with their channels last."""
    images = array.ndim > 3 and np.issubdtype(array.dtype, np.floating)
    return cast(jnp.asarray(np.moveaxis(array, 1, -1) if images else array), dtype)


def cast(leaf: Any, dtype: Any) -> Any:
    """Return a leaf in another type, if it holds floating-point numbers."""
    number = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if number else leaf


def modes(module: linen.Module) -> Mapping[str, bool]:
    """Return the keywords that put a Linen module into eval mode."""
    taken = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in EVAL.items() if name in taken}


def first(output: Any) -> Any:
    """Return the output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


# --- the rules


def allclose(tolerance: float) -> Callable[[Outputs], bool]:
    return lambda given: np.allclose(given.port, given.reference, tolerance, tolerance)


def cosine(given: Outputs) -> bool:
    a, b = given.port.ravel(), given.reference.ravel()
    return bool(a @ b >= COSINE * np.linalg.norm(a) * np.linalg.norm(b))


def divergence(given: Outputs) -> bool:
    """Accept by the mean Kullback-Leibler divergence of the softmax over the last axis."""
    port, reference = (log_softmax(array) for array in (given.port, given.reference))
    return bool((np.exp(reference) * (reference - port)).sum(-1).mean() <= DIVERGENCE)


def log_softmax(array: np.ndarray) -> np.ndarray:
    array = array - array.max(-1, keepdims=True)
    return array - np.log(np.exp(array).sum(-1, keepdims=True))


def ratio(given: Outputs) -> bool | None:
    """Accept where bfloat16's error on the port's side is not much larger than PyTorch's own."""
    if given.reference_bf16 is None or given.port_bf16 is None:
        return None
    port, own = (np.linalg.norm(low - given.reference) for low in (given.port_bf16, given.reference_bf16))
    return bool(port <= RATIO * own)


RULES: dict[str, Callable[[Outputs], bool | None]] = {
    "allclose 1e-3": allclose(1e-3),
    "allclose 1e-4": allclose(1e-4),
    "allclose 1e-5": allclose(1e-5),
    f"cosine {COSINE}": cosine,
    f"KL {DIVERGENCE}": divergence,
    f"bfloat16 ratio {RATIO}": ratio,
}


def rejections(given: Outputs) -> dict[str, bool | None]:
    """Return what each rule says: whether it rejects the port; None where it says nothing."""
    with np.errstate(all="ignore"):  # a wrong port may give NaN, which every comparison rejects
        said = {name: rule(given) for name, rule in RULES.items()}
    return {name: None if accepts is None else not accepts for name, accepts in said.items()}
