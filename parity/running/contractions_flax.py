"""Follows identities of numbers through JAX's program of a Flax model. See `contractions.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from parity.running.contractions import MOVED, Factor, Use, repeated, richest, uses
from parity.running.lifted_flax import bound

SMALL = 4096  # numbers of an array of indices that is computed
UNROLLED = 256  # steps of a loop that are followed


@dataclass(frozen=True)
class Value:
    """What is known of an array.

    Attributes:
        numbers: the identities of its numbers; None where none is followed.
        direct: whether they are the numbers themselves.
        fed: whether it depends on the inputs.
        known: the array itself, of small arrays of indices.
        behind: the followed tensors from which it is computed, by their numbers; with those whose numbers it has.
    """

    numbers: np.ndarray | None = None
    direct: bool = True
    fed: bool = False
    known: Any = None
    behind: frozenset[int] = frozenset()


def flax_uses(program: Any, numbers: Sequence[np.ndarray | None], ends: np.ndarray) -> list[Use]:
    """Return the uses of some tensors.

    Args:
        program: a closed jaxpr of the parameters alone, so that its constants are what the model is fed.
        numbers: for each argument of the program the identities of its numbers, or None.
        ends: the first identity that no longer belongs to a tensor, for each tensor.
    """
    return _followed(program, numbers, ends).found


def flax_factors(program: Any, marks: Sequence[np.ndarray | None], count: int) -> list[Factor]:
    """Return what some tensors are multiplied with.

    Args:
        program: as in `flax_uses`.
        marks: for each argument of the program an array that says of each number which tensor it belongs to, or None.
        count: of the tensors.
    """
    return _followed(program, marks, np.arange(1, count + 1)).factors


def _followed(program: Any, numbers: Sequence[np.ndarray | None], ends: np.ndarray) -> _Follower:
    follower = _Follower(ends)
    args = [Value() if a is None else follower.value(a) for a in numbers]
    follower.run(program.jaxpr, [_fed(x) for x in program.consts], args)
    return follower


def _tensors(numbers: np.ndarray, ends: np.ndarray) -> frozenset[int]:
    known = np.unique(np.searchsorted(ends, numbers[numbers >= 0], side="right"))
    return frozenset(int(i) for i in known)


class _Follower:
    def __init__(self, ends: np.ndarray) -> None:
        self.ends = ends
        self.found: list[Use] = []
        self.factors: list[Factor] = []

    def value(self, numbers: np.ndarray) -> Value:
        """Return an array with these identities; numbers that are all one are not followed one by one."""
        same = bool((numbers == numbers.flat[0]).all()) if numbers.size > 1 else False
        return Value(None if same else numbers, behind=_tensors(numbers, self.ends))

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        values: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(variable: Any) -> Value:
            return Value(known=np.asarray(variable.val)) if isinstance(variable, jex.Literal) else values[variable]

        for eqn in jaxpr.eqns:
            results = self._results(eqn, [read(variable) for variable in eqn.invars])
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _results(self, eqn: Any, given: Sequence[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._looped(eqn, given)
        inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
        if inner is not None and name not in ("while", "cond"):
            consts = [_fed(x) for x in getattr(inner, "consts", ())]
            jaxpr = getattr(inner, "jaxpr", inner)
            return self.run(jaxpr, consts, given[len(given) - len(jaxpr.invars) :])
        unknown = Value(fed=any(one.fed for one in given), behind=frozenset().union(*(one.behind for one in given)))
        if name in FACTORS and len(given) == 2:
            for mine, other in (given, given[::-1]):
                self.factors += [(mine.behind, other.behind)] if mine.behind and other.fed and not mine.fed else []
        if any(one.numbers is not None for one in given):
            return self._followed(eqn, given, unknown)
        if all(one.known is not None for one in given) and all(_indices(x.aval) for x in eqn.outvars):
            results = bound(eqn, [one.known for one in given], eqn.params)
            return [replace(unknown, known=np.asarray(x)) for x in results]
        return [unknown] * len(eqn.outvars)

    def _looped(self, eqn: Any, given: Sequence[Value]) -> Sequence[Value]:
        """Follow each step of a loop over stacked tensors."""
        consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        first, state, stacked = given[:consts], [*given[consts : consts + carried]], given[consts + carried :]
        fed, seen = any(one.fed for one in given), frozenset().union(*(one.behind for one in given))
        steps = range(min(eqn.params["length"], UNROLLED))
        inner = eqn.params["jaxpr"]
        follows = any(x.numbers is not None for x in stacked)
        for i in reversed(steps) if eqn.params["reverse"] else steps:
            now = [replace(x, known=None) if x.numbers is None else self.value(x.numbers[i]) for x in stacked]
            some = [replace(x, known=None) for x in state]
            state = self.run(inner.jaxpr, [_fed(x) for x in inner.consts], [*first, *some, *now])[:carried]
            if not follows and [(x.fed, x.behind) for x in state] == [(x.fed, x.behind) for x in some]:
                break
        seen = seen.union(*(x.behind for x in state))
        return [Value(fed=fed, behind=seen)] * len(eqn.outvars)

    def _followed(self, eqn: Any, given: Sequence[Value], unknown: Value) -> Sequence[Value]:
        """Return what is known of the results of an operation on followed numbers; `unknown` where nothing more is."""
        name = eqn.primitive.name
        if name == "dot_general":
            self._multiplied(eqn, given)
        elif name == "conv_general_dilated":
            self._convolved(eqn, given)
        elif name == "reduce_sum" and given[0].fed:
            assert given[0].numbers is not None
            self.found += uses(repeated(given[0].numbers), eqn.params["axes"], direct=given[0].direct)
        elif name in MOVES:
            return _moved(eqn, given, unknown)
        elif len(eqn.outvars) == 1 and name not in UNLIKE:
            return [_computed(eqn, given, unknown)]
        return [unknown] * len(eqn.outvars)

    def _multiplied(self, eqn: Any, given: Sequence[Value]) -> None:
        contracted, each = eqn.params["dimension_numbers"]
        for i, mine in enumerate(given):
            other = given[1 - i]
            if mine.numbers is not None and (mine.fed or other.fed):
                behind = other.behind - mine.behind
                self.found += uses(mine.numbers, contracted[i], each[i], direct=mine.direct, behind=behind)

    def _convolved(self, eqn: Any, given: Sequence[Value]) -> None:
        image, kernel = given
        if kernel.numbers is not None and (image.fed or kernel.fed):
            _, taken, *places = eqn.params["dimension_numbers"].rhs_spec
            behind = image.behind - kernel.behind
            self.found += uses(kernel.numbers, [taken], places=places, direct=kernel.direct, behind=behind)


def _fed(constant: Any) -> Value:
    """Return what is known of a constant: it may be an input."""
    return Value(fed=True, known=np.asarray(constant) if _indices(constant) else None)


def _indices(array: Any) -> bool:
    """Whether something is a small array of integers."""
    return jnp.issubdtype(array.dtype, jnp.integer) and array.size <= SMALL


def _moved(eqn: Any, given: Sequence[Value], unknown: Value) -> Sequence[Value]:
    """Return the results of an operation that moves numbers: what it does to their identities."""
    arrays: list[Any] = []
    for one, variable in zip(given, eqn.invars, strict=True):
        if one.numbers is not None:
            arrays.append(one.numbers)
        elif jnp.issubdtype(variable.aval.dtype, jnp.integer):
            if one.known is None:
                return [unknown] * len(eqn.outvars)
            arrays.append(one.known)
        else:
            arrays.append(np.full(variable.aval.shape, MOVED))
    moves = MOVES[eqn.primitive.name]
    results = bound(eqn, arrays, eqn.params) if moves is None else moves(arrays, eqn.params)
    direct = all(one.direct for one in given)
    return [replace(unknown, numbers=np.asarray(array, np.float64), direct=direct) for array in results]


def _computed(eqn: Any, given: Sequence[Value], unknown: Value) -> Value:
    """Return what is known of a result whose every number is computed from the numbers at its place."""
    shape = eqn.outvars[0].aval.shape
    numbers = [one.numbers for one in given if one.numbers is not None and one.numbers.shape == shape]
    return replace(unknown, numbers=richest(numbers, lambda array: array), direct=False)


def _broadcast(arrays: Sequence[np.ndarray], params: Mapping[str, Any]) -> list[np.ndarray]:
    shape, places = params["shape"], params["broadcast_dimensions"]
    fine = [1] * len(shape)
    for axis, place in enumerate(places):
        fine[place] = arrays[0].shape[axis]
    return [np.broadcast_to(arrays[0].reshape(fine), shape)]


def _sliced(arrays: Sequence[np.ndarray], params: Mapping[str, Any]) -> list[np.ndarray]:
    steps = params["strides"] or [1] * arrays[0].ndim
    return [arrays[0][tuple(map(slice, params["start_indices"], params["limit_indices"], steps))]]


def _split(arrays: Sequence[np.ndarray], params: Mapping[str, Any]) -> list[np.ndarray]:
    return np.split(arrays[0], np.cumsum(params["sizes"])[:-1], params["axis"])


def _same(arrays: Sequence[np.ndarray], params: Mapping[str, Any]) -> list[np.ndarray]:
    return [arrays[0]]


Moves = Callable[[Sequence[np.ndarray], Mapping[str, Any]], list[np.ndarray]]

# Operations that move numbers, in NumPy where that is quick to say; None where JAX moves them.
MOVES: dict[str, Moves | None] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda arrays, params: [np.concatenate(arrays, params["dimension"])],
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "dynamic_slice": None,
    "expand_dims": lambda arrays, params: [np.expand_dims(arrays[0], params["dimensions"])],
    "gather": None,
    "pad": None,
    "reduce_precision": _same,
    "reshape": lambda arrays, params: [arrays[0].reshape(params["new_sizes"])],
    "rev": lambda arrays, params: [np.flip(arrays[0], params["dimensions"])],
    "slice": _sliced,
    "split": _split,
    "squeeze": lambda arrays, params: [arrays[0].squeeze(tuple(params["dimensions"]))],
    "stop_gradient": _same,
    "transpose": lambda arrays, params: [arrays[0].transpose(params["permutation"])],
}
# Operations whose result may have the shape of an operand, and not its numbers at their places.
UNLIKE = {"sort", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "fft", "scatter", "scatter-add", "while"}
# Operations that multiply their two operands.
FACTORS = {"dot_general", "conv_general_dilated", "mul"}
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
