"""Recognises what a chain of operations computes: every tensor remembers the call that made it.

A softmax, a norm or a rotary embedding in somebody's own code is a chain of products, sums and roots. A mistake in such
a part is planted at its last call: from there the chain is followed backwards, and one call in it is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

# One function under several names: `a * b` calls `mul`, `2 * a` calls `__rmul__`.
SYNONYMS = {
    **dict.fromkeys(("rmul", "imul", "multiply"), "mul"),
    **dict.fromkeys(("radd", "iadd"), "add"),
    **dict.fromkeys(("isub", "subtract"), "sub"),
    **dict.fromkeys(("truediv", "itruediv", "idiv", "true_divide", "divide"), "div"),
    **dict.fromkeys(("rtruediv", "rdiv"), "rdiv"),
    **dict.fromkeys(("ipow", "float_power"), "pow"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **dict.fromkeys(("mm", "bmm"), "matmul"),
    **dict.fromkeys(("view", "unflatten", "_unsafe_view"), "reshape"),
    **dict.fromkeys(("swapaxes", "swapdims"), "transpose"),
    **dict.fromkeys(("negative",), "neg"),
    **dict.fromkeys(("absolute",), "abs"),
}

# Calls that return the numbers of their first argument in the same places.
TRANSPARENT = frozenset(
    ("contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16", "dropout", "detach")
)

# Parts of the names of functions that draw numbers.
RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal_", "poisson")

# Functions that read memory without checking the sizes and integers that they get: wrong ones crash the process.
UNCHECKED = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu", "pack_padded_sequence", "pad_packed_sequence"))

# Operations that change their first argument.
CHANGING = ("iadd", "isub", "imul", "itruediv", "idiv", "ipow", "setitem")


@dataclass(frozen=True)
class Call:
    """A call of a function, and its arguments.

    Attributes:
        name: of the function, without underscores; synonyms share one name.
        args, kw: what it got; a tensor that a later call changes in place is kept here as it was.
        part: the number of this tensor, if the call gave several.
        number: of the call in its run.
        place: file and line of the code that calls it; empty if nobody asked for it.
    """

    name: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kw: dict[str, Any]
    part: int | None = None
    number: int = -1
    place: str = ""

    def __getitem__(self, i: int) -> Any:
        return self.args[i]

    def argument(self, i: int, name: str, default: Any = None) -> Any:
        """An argument, by position or by name."""
        return self.args[i] if len(self.args) > i else self.kw.get(name, default)

    @property
    def changing(self) -> bool:
        """Whether it changes its first argument in place: by its name, or by the argument `inplace`."""
        place = _inplace(self.function)
        asked = self.argument(place, "inplace") is True if place is not None else False
        return (asked or changes(self.function)) and bool(self.args) and isinstance(self.args[0], Tensor)

    def given(self) -> Any:
        """The arguments, with a copy of the one that the function changes."""
        if not self.changing:
            return tuple(self.args)
        copied = self.args[0].clone()
        if (call := call_of(self.args[0])) is not None:
            remember(copied, call)
        return copied, *self.args[1:]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All tensors in its arguments, also inside lists."""
        for value in (*self.args, *self.kw.values()):
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, Tensor):
                    yield item


def name_of(function: Any) -> str:
    """Return the one name that a function has here; for a property, the property's name."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    name = name.strip("_")
    return SYNONYMS.get(name, name)


def changes(function: Any) -> bool:
    """Return whether a function changes its first argument in place."""
    name = getattr(function, "__name__", "")
    return name.strip("_") in CHANGING or (name.endswith("_") and not name.endswith("__"))


@lru_cache(512)
def _inplace(function: Any) -> int | None:
    """Return the place of the argument `inplace` of PyTorch's functional activations."""
    if getattr(function, "__module__", "") != "torch.nn.functional":
        return None
    try:
        names = [*inspect.signature(function).parameters]
    except ValueError:
        return None
    return names.index("inplace") if "inplace" in names else None


def fresh(value: Any) -> Any:
    """Return new tensors with the same numbers, because a mistake may return a tensor that remembers another call."""
    if isinstance(value, Tensor):
        return value.view_as(value)
    if type(value) in (list, tuple):
        return type(value)(fresh(item) for item in value)
    return value


def exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return arguments with one tensor in place of another."""
    if isinstance(value, dict):
        return {name: exchanged(item, old, new) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(exchanged(item, old, new) for item in value)
    return new if value is old else value


def remember(value: Any, call: Call) -> None:
    """Make the result of a call remember the call."""
    if isinstance(value, Tensor):
        if not any(value is given for given in call.tensors):
            value.made_of = call  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, Tensor):
                item.made_of = replace(call, part=i)  # pyright: ignore[reportAttributeAccessIssue]


def call_of(x: Any) -> Call | None:
    """Return the call that made a tensor; None if it came from a layer, or is not a tensor."""
    return getattr(x, "made_of", None) if isinstance(x, Tensor) else None


def through(x: Any, names: frozenset[str] = TRANSPARENT) -> Any:
    """Return the tensor whose numbers `x` passes on."""
    while (call := call_of(x)) is not None and call.name in names and call.args:
        x = call[0]
    return x


def made(x: Any, *names: str) -> Call | None:
    """Return the call that made `x`, if it is one of these; skip calls that only pass numbers on."""
    while (call := call_of(x)) is not None:
        if call.name in names:
            return call
        if call.name not in TRANSPARENT or not call.args:
            return None
        x = call[0]
    return None


def number(x: Any) -> float | None:
    """Return a number, or a tensor of one; None for anything else."""
    if isinstance(x, bool) or (isinstance(x, Tensor) and (x.ndim or isinstance(x, nn.Parameter))):
        return None
    if isinstance(x, Tensor) and x.dtype.is_complex:
        return None
    return float(x) if isinstance(x, int | float | Tensor) else None


def scaled(x: Any) -> tuple[Tensor, float] | None:
    """Return a tensor, and the number by which it is multiplied or divided to give `x`."""
    call = made(x, "mul", "div", "neg")
    if call is None:
        return None
    if call.name == "neg":
        return call[0], -1.0
    a, b = call[0], call.argument(1, "other")
    if (by := number(b)) is not None and isinstance(a, Tensor):
        return a, by if call.name == "mul" else 1 / by
    if (by := number(a)) is not None and isinstance(b, Tensor) and call.name == "mul":
        return b, by
    return None


def orders(call: Call) -> Iterator[tuple[Any, Any]]:
    """Yield the two operands of a sum or product in both orders."""
    a, b = call[0], call.argument(1, "other")
    yield a, b
    yield b, a


def same(a: Any, b: Any) -> bool:
    """Return whether two tensors have the same numbers, up to rounding."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    return a is b or bool(torch.allclose(a.detach(), b.detach(), rtol=1e-9, atol=1e-9))


def is_vector(x: Any) -> bool:
    """Return whether `x` is a parameter that scales or shifts features: one axis longer than one."""
    x = through(x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    held = isinstance(x, nn.Parameter) or call_of(x) is None or made(x, "reshape", "unsqueeze", "getitem") is not None
    return held and x.ndim > 0 and max(x.shape) == x.numel() > 1


def reached(x: Any) -> list[Call]:
    """Return all calls that computed `x`, back to the outputs of layers, in order."""
    found: dict[int, Call] = {}
    waiting = [call_of(x)]
    while waiting:
        call = waiting.pop()
        if call is not None and call.number not in found:
            found[call.number] = call
            waiting += [call_of(t) for t in call.tensors]
    return [found[number] for number in sorted(found)]


def replayed(x: Any, calls: Sequence[Call], plant: Callable[..., Any], at: Collection[int]) -> Any:
    """Return what `x` becomes if mistakes are planted in some of its calls; None if that is impossible.

    Args:
        calls: all calls that computed `x`, in order.
        at: the numbers of the calls with a mistake.
    """
    made_anew: dict[int, Any] = {}

    def anew(value: Any) -> Any:
        if isinstance(value, list | tuple):
            parts = [anew(item) for item in value]
            if all(part is item for part, item in zip(parts, value, strict=True)):
                return value
            return parts if isinstance(value, list) else tuple(parts)
        call = call_of(value)
        if call is None or call.number not in made_anew:
            return value
        new = made_anew[call.number]
        return new if call.part is None else new[call.part]

    for call in calls:
        args, kw = anew(call.args), {name: anew(value) for name, value in call.kw.items()}
        changed = any(a is not b for a, b in zip((*args, *kw.values()), (*call.args, *call.kw.values()), strict=True))
        if call.number not in at and not changed:
            continue
        new = replace(call, args=args, kw=kw)
        given, function = new.given(), _guarded(call)
        value = fresh(plant(function, given, kw)) if call.number in at else None
        value = function(*given, **kw) if value is None else value
        value = given[0] if value is None and new.changing else value  # `x[i] = y` gives nothing
        remember(value, new)
        made_anew[call.number] = value
    return anew(x)


def _guarded(call: Call) -> Callable[..., Any]:
    """Return the function of a call; a function without checks is wrapped, and raises if its sizes change."""
    if call.name not in UNCHECKED:
        return call.function

    @wraps(call.function)
    def checked(*args: Any, **kw: Any) -> Any:
        if _form((args, kw)) != _form((tuple(call.args), call.kw)):
            raise ValueError(f"{call.name}: got other sizes or whole numbers than in the network")
        return call.function(*args, **kw)

    return checked


def _form(value: Any) -> Any:
    """Return the arguments that are not real numbers: shapes and integers."""
    if isinstance(value, dict):
        return {name: _form(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_form(part) for part in value]
    if isinstance(value, Tensor):
        return [str(value.dtype), *value.shape, None if value.is_floating_point() else value.tolist()]
    return None if isinstance(value, float) else value


def read_once(read: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the analysis of a call, which many traps use."""
    last: list[Any] = [None, None]

    def reading(function: Any, args: Any, kw: dict[str, Any]) -> Any:
        if last[0] is not args:
            last[:] = args, read(function, args, kw)
        return last[1]

    return reading
