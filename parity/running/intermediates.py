"""The intermediate arrays of a model: a mark of each array, which does not depend on the order of its numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parity.numerics.pins import Pins
from parity.running.lifted_flax import bound, trace

# Size, and the sums of the numbers' magnitudes and of their squares.
Mark = tuple[int, float, float]
Values = Sequence[Any]
NEAR = 1e-9  # of each other are marks of one array
LOOPS = ("scan", "while", "cond")  # their parts run several times, or not at all: the results alone are seen


def _mark(array: np.ndarray) -> Mark | None:
    if array.size < 2 or array.dtype.kind not in "fc":
        return None
    sizes = np.abs(array.reshape(-1).astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    return array.size, float(sizes.sum()), float(np.square(sizes).sum())


def _marks(array: np.ndarray, lengths: Collection[int]) -> Iterator[Mark]:
    """Yield the mark of an array, and of its parts along the axes that may be lists of layers."""
    axes = [i for i, n in enumerate(array.shape) if n > 1 and n in lengths]
    parts = (part for i in axes for part in np.moveaxis(array, i, 0))
    for one in (array, *parts):
        if (mark := _mark(one)) is not None:
            yield mark


class TorchMarks(TorchDispatchMode):
    """Marks the result of each PyTorch operation.

    Args:
        lengths: the lengths of lists of layers that one model may compute in one array.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports `torch.compile` here (1.5 s)

    def __init__(self, lengths: Collection[int] = ()) -> None:
        super().__init__()
        self.lengths = lengths
        self.found: list[Mark] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.found += _marks(value.detach().resolve_conj().resolve_neg().numpy(), self.lengths)
        return result


def flax_marks(function: Callable[..., Any], args: tuple[Any, ...], lengths: Collection[int] = ()) -> list[Mark]:
    """Return the marks of the results of all operations in a function of pytrees."""
    program, _ = trace(function, args, Pins(""))
    found: list[Mark] = []

    def see(results: Values) -> None:
        arrays = (np.asarray(x) for x in results if jnp.issubdtype(x.dtype, jnp.inexact))
        found.extend(mark for array in arrays for mark in _marks(array, lengths))

    _evaluate(program.jaxpr, program.consts, jax.tree.leaves(args), see)
    return found


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], see: Callable[[Sequence[Any]], None]
) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jex.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        given = [read(variable) for variable in eqn.invars]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None and eqn.primitive.name not in LOOPS:
            results = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given, see)
        else:
            results = bound(eqn, given, eqn.params)
            see(results)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def common(mine: Iterable[Mark], theirs: Iterable[Mark]) -> int:
    """Return how many different arrays of one model the other one has, too."""
    sizes: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for size, *sums in theirs:
        sizes[size].append((sums[0], sums[1]))
    arrays = {size: np.array(some) for size, some in sizes.items()}
    seen: set[tuple[int, str, str]] = set()
    for size, first, second in mine:
        if (others := arrays.get(size)) is not None:
            sums = np.array((first, second))
            if (np.abs(others - sums) <= NEAR * sums).all(1).any():
                seen.add((size, f"{first:.8e}", f"{second:.8e}"))
    return len(seen)
