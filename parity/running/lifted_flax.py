"""Runs JAX programs in float64 whatever types their code names.

Somebody's model pins float32 in its own code: `x.astype(jnp.float32)`, a table of positions, `preferred_element_type`.
JAX traces the program while casts to narrow types give float64. The narrow types that are left in the traced program,
also in its loops, branches and functions, are rewritten operation by operation.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import linen, nnx
from jax import lax
from jax.core import Tracer
from jax.extend import source_info_util

from parity.numerics import tables
from parity.numerics.pins import KEPT, RECOMPUTED, TABLE, Pins
from parity.running.lifted_numpy import numpy_lifted
from ports.errors import UserError

WIDE = {
    np.dtype(np.float16): np.dtype(np.float64),
    np.dtype(ml_dtypes.bfloat16): np.dtype(np.float64),
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.complex64): np.dtype(np.complex128),
}

# An array, a traced value, or a number.
Value = Any
Values = Sequence[Value]
Function = Callable[..., Any]

# Takes an operation and its operands, and gives its result in float64; for operations that hold functions or types.
Handler = Callable[[jex.JaxprEqn, Values, Pins], Values]


def narrow(dtype: Any) -> bool:
    """Return whether a type is floating or complex, and narrower than float64."""
    return isinstance(dtype, np.dtype) and dtype in WIDE


def _in_numpy(dtype: Any) -> Any:
    """Return numpy's type; a type without one, such as that of random keys, is returned as it is."""
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype)


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def program(function: Function, pins: Pins) -> Function:
    """Return the function, computed in float64 throughout. It takes and gives pytrees of arrays.

    Args:
        pins: gets the places that name a narrower type.
    """

    def run(*args: Any) -> Any:
        closed, shape = trace(function, args, pins)
        values = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), pins)
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return run


def pinned(function: Function, args: Values) -> bool:
    """Return whether a function computes any value in a narrower type than float64."""
    closed = jax.make_jaxpr(function)(*args)
    return needs(closed.jaxpr) or any(narrow(_dtype(c)) for c in closed.consts)


def shapes(function: Function, *args: Any) -> Any:
    """Run a function of pytrees without numbers, as `program` traces it; return the shapes of its result."""
    return trace(function, args, Pins(""))[1]


def lifts(function: Callable[[], Any]) -> bool:
    """Return whether a function can be traced with casts that give float64."""
    try:
        with casts_lifted(Pins("")):
            jax.eval_shape(function)
    except UserError:
        raise
    except (TypeError, ValueError):
        return False
    return True


def trace(function: Function, args: Values, pins: Pins) -> tuple[Any, Any]:
    """Return the traced program, and the shapes of its result.

    With casts that give float64, a loop may get a float32 array and return it in float64, which JAX refuses. Then the
    program is traced without lifted casts.
    """
    make = jax.make_jaxpr(function, return_shape=True)
    try:
        with casts_lifted(pins):
            return make(*args)
    except UserError:
        raise
    except (TypeError, ValueError):
        with limits_of_float32():
            return make(*args)


@contextmanager
def casts_lifted(pins: Pins) -> Iterator[None]:
    """Make this thread's casts to narrow types give float64.

    JAX caches traced functions by the types of their arguments and by its settings. The precision of products has no
    effect in float64; it is set here so that functions traced here have their own cache entries.
    """
    module: Any = lax_module()
    original, thread = getattr(module, CONVERT, None), threading.get_ident()

    def convert(operand: Any, new_dtype: Any = None, *args: Any, **kw: Any) -> Any:
        assert original is not None
        if new_dtype is not None and threading.get_ident() == thread and narrow(_in_numpy(new_dtype)):
            held, made = _dtype(operand), not isinstance(operand, Tracer)
            if made and narrow(held) and np.ndim(operand):
                operand = table(operand, pins)
            elif held is not None and not made:
                pins.note("cast", np.dtype(new_dtype), layer_name)
            new_dtype = WIDE[np.dtype(new_dtype)]
        return original(operand, new_dtype, *args, **kw)

    with ExitStack() as stack:
        stack.enter_context(limits_of_float32())
        stack.enter_context(numpy_lifted(pins))
        stack.enter_context(types_lifted(pins))
        if original is not None:
            stack.enter_context(jax.default_matmul_precision("highest"))
            setattr(module, CONVERT, convert)
            stack.callback(setattr, module, CONVERT, original)
        yield


@contextmanager
def types_lifted(pins: Pins) -> Iterator[None]:
    """Give this thread's operations in `OPERANDS` operands that fit together in float64."""
    thread = threading.get_ident()

    def changing(primitive: Any, change: Operands) -> Function:
        original = primitive.bind

        def bind(*args: Any, **params: Any) -> Any:
            if threading.get_ident() == thread:
                args, params = change(primitive.name, args, params, pins)
            return original(*args, **params)

        return bind

    before = {primitive: vars(primitive).get("bind") for primitive in OPERANDS}
    try:
        for primitive, change in OPERANDS.items():
            vars(primitive)["bind"] = changing(primitive, change)
        yield
    finally:
        for primitive, bind in before.items():
            vars(primitive).pop("bind", None)
            vars(primitive).update({} if bind is None else {"bind": bind})


def _typed(key: str, name: str, args: Any, params: dict[str, Any], pins: Pins) -> tuple[Any, dict[str, Any]]:
    """Make an operation give float64 if it names a narrow type but takes none.

    A float32 result could not be added to a Python number, which the lifted casts make float64.
    """
    dtype = params.get(key)
    if not narrow(dtype) or any(narrow(_dtype(x)) for x in args):
        return args, params
    pins.note(name, dtype, layer_name)
    return args, {**params, key: WIDE[dtype]}


def _indexed(first: int, name: str, args: Any, params: dict[str, Any], pins: Pins) -> tuple[Any, dict[str, Any]]:
    """Give all indices of a slice one type: a position may be counted in int32, while a Python number is int64."""
    indices = args[first:]
    if len({jnp.result_type(x) for x in indices}) > 1:
        indices = tuple(lax.convert_element_type(x, np.int64) for x in indices)
    return (*args[:first], *indices), params


# Takes the name of an operation, its operands and its parameters, and gives other operands and parameters.
Operands = Callable[[str, Any, dict[str, Any], Pins], tuple[Any, dict[str, Any]]]

OPERANDS: dict[Any, Operands] = {
    lax.iota_p: partial(_typed, "dtype"),
    lax.dot_general_p: partial(_typed, "preferred_element_type"),
    lax.conv_general_dilated_p: partial(_typed, "preferred_element_type"),
    lax.dynamic_slice_p: partial(_indexed, 1),
    lax.dynamic_update_slice_p: partial(_indexed, 2),
}


# The one function through which JAX casts: Python numbers, arrays and traced values. It is not public, and without it
# the traced program alone is rewritten, where Python numbers are already rounded.
CONVERT = "_convert_element_type"


def lax_module() -> Any:
    """Return the module of JAX that defines `lax.convert_element_type`."""
    return sys.modules["jax._src.lax.lax"]


@contextmanager
def limits_of_float32() -> Iterator[None]:
    """Make `jnp.finfo(float64)` give this thread the limits of float32, with which the model computes in normal use."""
    original, thread = jnp.finfo, threading.get_ident()

    def finfo(dtype: Any) -> Any:
        ours = threading.get_ident() == thread
        given = np.dtype(dtype if not hasattr(dtype, "dtype") else dtype.dtype)
        return original(np.float32 if ours and given == np.float64 else dtype)

    jnp.finfo = finfo
    try:
        yield
    finally:
        jnp.finfo = original


def layer_name(owner: object) -> str | None:
    """Return the name of a Flax module: its path in Linen, its class in NNX."""
    if isinstance(owner, linen.Module):
        return ".".join(owner.path) if owner.scope is not None else type(owner).__name__
    return type(owner).__name__ if isinstance(owner, nnx.Module) else None


def needs(jaxpr: jex.Jaxpr) -> bool:
    """Return whether a traced program, or a function in it, holds a narrow type."""
    for eqn in jaxpr.eqns:
        if any(narrow(_dtype(v.aval)) for v in (*eqn.invars, *eqn.outvars)):
            return True
        if any(narrow(value) for value in eqn.params.values()):
            return True
        if any(needs(inner) for inner in jex.jaxprs_in_params(eqn.params)):
            return True
    return any(narrow(_dtype(v.aval)) for v in (*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars))


def widened(value: Value) -> Value:
    """Return an array in float64, if it is of a narrower floating type."""
    dtype = _dtype(value)
    return lax.convert_element_type(value, WIDE[dtype]) if narrow(dtype) else value


def table(value: Value, pins: Pins, place: str | None = None) -> Value:
    """Return an array that the model made in a narrow type in float64, recomputed if its formula is known."""
    found = None if isinstance(value, Tracer) else tables.recomputed(np.asarray(value))
    pins.note("array", value.dtype, layer_name, TABLE if found is None else RECOMPUTED, place)
    return widened(value) if found is None else found


def number(value: Value) -> Value:
    """Return a constant of a traced program in float64.

    A number written as 0.1 in the code appears there as the nearest float32. It is read as the shortest decimal that
    gives this float32.
    """
    dtype = _dtype(value)
    if not narrow(dtype) or np.ndim(value) or dtype.kind == "c":
        return widened(value)
    exact = float(value)
    for digits in range(10):
        short = float(f"{exact:.{digits}e}")
        with np.errstate(over="ignore"):
            if np.asarray(short, dtype) == np.asarray(value):
                return np.float64(short)
    return np.float64(exact)


def evaluate(jaxpr: jex.Jaxpr, consts: Values, args: Values, pins: Pins) -> list[Value]:
    """Compute a traced program with float64 in place of every narrower type."""
    env: dict[jex.Var, Value] = {}

    def read(v: jex.Var | jex.Literal) -> Value:
        return number(v.val) if isinstance(v, jex.Literal) else env[v]

    def constant(value: Value) -> Value:
        if narrow(_dtype(value)) and np.ndim(value):
            return table(value, pins, f"a constant of {tuple(np.shape(value))}")
        return number(value)

    env |= zip(jaxpr.constvars, map(constant, consts), strict=True)
    env |= zip(jaxpr.invars, map(widened, args), strict=True)
    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        env |= zip(eqn.outvars, _computed(eqn, values, pins), strict=True)
    return [widened(read(v)) for v in jaxpr.outvars]


def _computed(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    """Return the result of an operation in float64."""
    inner = list(jex.jaxprs_in_params(eqn.params))
    touched = any(narrow(_dtype(v.aval)) for v in (*eqn.invars, *eqn.outvars)) or any(map(needs, inner))
    named = {key: value for key, value in eqn.params.items() if narrow(value)}
    name = eqn.primitive.name.replace("-", "_")
    if not touched and not named and name not in OWN_DERIVATIVES:
        return bound(eqn, values, eqn.params)
    if handler := HANDLERS.get(name):
        return handler(eqn, values, pins)
    if inner:
        return _as_it_is(eqn, values, pins)
    for dtype in named.values():
        pins.note(name, dtype, place=_place(eqn))
    wide = {key: WIDE[value] for key, value in named.items()}
    if type(eqn.params.get("precision")).__name__ == "DotAlgorithmPreset":
        wide["precision"] = None
    return bound(eqn, values, {**eqn.params, **wide})


def bound(eqn: jex.JaxprEqn, values: Values, params: Mapping[str, Any]) -> Values:
    given = eqn.primitive.get_bind_params(params)
    arguments = ((), given) if isinstance(given, dict) else given
    result = eqn.primitive.bind(*arguments[0], *values, **arguments[1])
    return result if eqn.primitive.multiple_results else [result]


def _place(eqn: jex.JaxprEqn) -> str:
    """Return file and line of an operation's code."""
    said = source_info_util.summarize(eqn.source_info).partition(" ")[0]
    return ":".join(said.rpartition("/")[2].split(":")[:2])


def _narrowed(eqn: jex.JaxprEqn, values: Values) -> list[Value]:
    """Return the operands in the types that the program declares."""
    pairs = zip(values, _avals(eqn.invars), strict=True)
    return [x.astype(aval.dtype) if narrow(aval.dtype) else x for x, aval in pairs]


def _as_it_is(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    """Compute an operation in its own types: a callback, a kernel, or bits read as a number."""
    if (name := eqn.primitive.name) != "bitcast_convert_type":
        pins.note(name, "float32", kind=KEPT, place=_place(eqn))
    values = [jnp.asarray(x) for x in values]
    return [widened(x) for x in bound(eqn, _narrowed(eqn, values), eqn.params)]


def _inlined(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    jaxpr, consts = _opened(next(iter(jex.jaxprs_in_params(eqn.params))), eqn)
    return evaluate(jaxpr, consts, values, pins)


def _opened(jaxpr: jex.Jaxpr, eqn: jex.JaxprEqn) -> tuple[Any, Sequence[Any]]:
    """Return the program of an operation and its constants."""
    for value in eqn.params.values():
        if isinstance(value, jex.ClosedJaxpr) and value.jaxpr is jaxpr:
            return value.jaxpr, value.consts
    return jaxpr, ()


def _remat(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    jaxpr = eqn.params["jaxpr"]
    policy = eqn.params.get("policy")
    return jax.checkpoint(lambda *xs: evaluate(jaxpr, (), xs, pins), policy=policy)(*values)


def _scan(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    p = eqn.params
    closed, (constants, carried) = p["jaxpr"], _counts(p)
    fixed, init, xs = values[:constants], values[constants : constants + carried], values[constants + carried :]

    def body(carry: Values, x: Values) -> tuple[Values, Values]:
        out = evaluate(closed.jaxpr, closed.consts, [*fixed, *carry, *x], pins)
        return out[:carried], out[carried:]

    carry, ys = lax.scan(
        body, [jnp.asarray(x) for x in init], list(xs), p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*carry, *ys]


def _counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many operands of a scan are constants, and how many are carried; jax 0.11 has them as trees."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def _while(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    p = eqn.params
    test, body = p["cond_jaxpr"], p["body_jaxpr"]
    first, second = p["cond_nconsts"], p["body_nconsts"]
    for_test, for_body, init = values[:first], values[first : first + second], values[first + second :]
    return lax.while_loop(
        lambda carry: evaluate(test.jaxpr, test.consts, [*for_test, *carry], pins)[0],
        lambda carry: evaluate(body.jaxpr, body.consts, [*for_body, *carry], pins),
        [jnp.asarray(x) for x in init],
    )


def _cond(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    index, *operands = values

    def branch(closed: Any) -> Function:
        return lambda *xs: evaluate(closed.jaxpr, closed.consts, xs, pins)

    return lax.switch(index, [branch(closed) for closed in eqn.params["branches"]], *operands)


def _avals(variables: Sequence[jex.Var | jex.Literal]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes and types of the program."""
    held: list[Any] = [v.aval for v in variables]
    return tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in held)


def _custom_jvp(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    """Compute a function that has a derivative of its own: both are lifted."""
    closed = eqn.params["call_jaxpr"]

    def given(*xs: Value) -> Value:
        return tuple(bound(eqn, xs, eqn.params))

    @jax.custom_jvp
    def function(*xs: Value) -> Value:
        return tuple(evaluate(closed.jaxpr, closed.consts, xs, pins))

    def derivative(primals: Values, tangents: Values) -> tuple[Values, Values]:
        avals = _avals(eqn.invars)
        with casts_lifted(pins):
            traced = jax.make_jaxpr(lambda p, t: jax.jvp(given, p, t))(avals, avals)
        out = evaluate(traced.jaxpr, traced.consts, [*primals, *tangents], pins)
        return tuple(out[: len(out) // 2]), tuple(out[len(out) // 2 :])

    function.defjvp(derivative)
    return function(*values)


def _custom_vjp(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    closed = eqn.params.get("call_jaxpr") or eqn.params["fun_jaxpr"]

    def given(*xs: Value) -> Value:
        return tuple(bound(eqn, xs, eqn.params))

    @jax.custom_vjp
    def function(*xs: Value) -> Value:
        return tuple(evaluate(closed.jaxpr, closed.consts, xs, pins))

    def backward(xs: Values, slopes: Values) -> tuple[Value, ...]:
        avals, outs = _avals(eqn.invars), _avals(eqn.outvars)
        whole = [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)]

        def slope(xs: Values, slopes: Values) -> Values:
            def moving(*moved: Value) -> Values:
                every = list(xs)
                for i, x in zip(whole, moved, strict=True):
                    every[i] = x
                return given(*every)

            return jax.vjp(moving, *(xs[i] for i in whole))[1](slopes)

        with casts_lifted(pins):
            traced = jax.make_jaxpr(slope)(avals, outs)
        found = evaluate(traced.jaxpr, traced.consts, [*xs, *slopes], pins)
        every: list[Any] = [np.zeros(a.shape, jax.dtypes.float0) for a in avals]
        for i, x in zip(whole, found, strict=True):
            every[i] = x
        return tuple(every)

    function.defvjp(lambda *xs: (function(*xs), xs), backward)
    return function(*values)


def _scatter(function: Function, eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    p = eqn.params
    options = {key: p[key] for key in ("indices_are_sorted", "unique_indices", "mode")}
    return [function(*values, p["dimension_numbers"], **options)]


def _unrounded(eqn: jex.JaxprEqn, values: Values, pins: Pins) -> Values:
    pins.note("reduce_precision", f"{eqn.params['mantissa_bits']} bits", place=_place(eqn))
    return values


# Operations whose derivative is the caller's code, which is traced when it is needed.
OWN_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")

# Operations that hold functions or names of types that replacing the types alone does not reach.
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "custom_lin"), _inlined),
    **dict.fromkeys(("remat", "remat2", "checkpoint"), _remat),
    **dict.fromkeys(("custom_jvp_call",), _custom_jvp),
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), _custom_vjp),
    **dict.fromkeys(("pure_callback", "io_callback", "ffi_call", "pallas_call", "random_gamma"), _as_it_is),
    "bitcast_convert_type": _as_it_is,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "reduce_precision": _unrounded,
    "scatter": partial(_scatter, lax.scatter),
    "scatter_add": partial(_scatter, lax.scatter_add),
    "scatter_sub": partial(_scatter, lax.scatter_sub),
    "scatter_mul": partial(_scatter, lax.scatter_mul),
    "scatter_min": partial(_scatter, lax.scatter_min),
    "scatter_max": partial(_scatter, lax.scatter_max),
}
