"""Runs PyTorch's code in float64 whatever types it names.

Somebody's model pins float32 in its own code: `x.float()`, `softmax(dtype=torch.float32)`, `torch.arange(n) / 10` in
PyTorch's default type. A mode of `torch.overrides` sees every call of a function, and replaces these types by float64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from parity.numerics.bounds import EPSILON
from parity.numerics.pins import RECOMPUTED, TABLE, Pins
from parity.numerics.tables import recomputed

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

# Methods that cast without naming a type.
CASTS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "cfloat": torch.complex64}

# Names of types that `Tensor.type` accepts.
NAMES = {"torch.FloatTensor": "torch.DoubleTensor", "torch.HalfTensor": "torch.DoubleTensor"}

# Functions whose type argument is not a cast: they reinterpret the bits of a number, or ask about types.
BITS = {"view", "is_floating_point", "can_cast", "promote_types", "result_type", "finfo", "is_tensor", "__set__"}


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    y = nn.functional.relu6(x + 3) / 6
    return x.copy_(y) if inplace else y


def _instance_norm(*args: Any, **kw: Any) -> Tensor:
    y = nn.functional.instance_norm(*args, **kw)
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)
    return y


# Functions whose gradient PyTorch does not compute exactly, whatever the type. `hardsigmoid` has 1/6 in float32 there.
# The gradient of `instance_norm` is wrong on CPUs (PyTorch 2.13) where the one that arrives has its examples and
# channels last in memory, as an attention over the places of an image gives it.
EXACT: dict[str, Callable[..., Tensor]] = {"hardsigmoid": _hardsigmoid, "instance_norm": _instance_norm}

# A lock for the moments in which PyTorch's default type is float64: the setting is global in the process.
DEFAULT = threading.RLock()


class Lifted(TorchFunctionMode):
    """Computes in float64 whatever types the code names.

    Args:
        pins: gets the places that name a narrower type.
        name_of: a module's name in the network.
    """

    def __init__(self, pins: Pins, name_of: Callable[[object], str | None] = lambda _: None) -> None:
        super().__init__()
        self.pins, self.name_of = pins, name_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in BITS:
            return func(*args, **kwargs)
        if name in CASTS and len(args) == 1 and isinstance(args[0], Tensor):
            self._note(name, CASTS[name], args[0])
            return args[0].to(WIDE[CASTS[name]])
        if name == "rms_norm" and len(args) < 4 and kwargs.get("eps") is None:
            kwargs = {**kwargs, "eps": EPSILON[torch.float32]}  # PyTorch's default is that of the type
        in_place = name.endswith("_") and not name.endswith("__")
        seen = Arguments(self, name, args, in_place)
        args = tuple(map(seen.wide, args))
        kwargs = {key: seen.wide(value) for key, value in kwargs.items()}
        with nullcontext() if seen.floating else default_float64():
            result = self._run(name, func)(*args, **kwargs)
        if in_place:
            return result
        return _each(result, _double)

    @staticmethod
    def _run(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that computes another one in float64.

        Without gradients it is the function itself, which the diagnosis looks for among the calls.
        """
        exact = EXACT.get(name) if getattr(function, "__module__", "") == nn.functional.__name__ else None
        return function if exact is None or not torch.is_grad_enabled() else exact

    def _table(self, value: Tensor) -> Tensor:
        """Return a tensor that the model holds in a narrow type in float64."""
        found = None if value.requires_grad or value.is_complex() else recomputed(value.float().numpy(force=True))
        self._note("array", value.dtype, value, TABLE if found is None else RECOMPUTED)
        return value.to(WIDE[value.dtype]) if found is None else torch.as_tensor(found, device=value.device)

    def _note(self, operation: str, dtype: torch.dtype, operand: object = None, kind: str = "cast") -> None:
        """Note a pin, unless it casts integers or booleans: a mask rounds to itself."""
        if not isinstance(operand, Tensor) or operand.is_floating_point() or operand.is_complex():
            self.pins.note(operation, dtype, self.name_of, kind)


class Arguments:
    """The arguments of a function, in float64.

    Attributes:
        floating: whether one of the tensors is floating, so that the type of the result follows it.
    """

    def __init__(self, mode: Lifted, name: str, args: Any, in_place: bool) -> None:
        self.mode, self.name, self.in_place, self.floating = mode, name, in_place, False
        self.operand = args[0] if args else None

    def wide(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            if value in WIDE:
                self.mode._note(self.name, value, self.operand)
            return WIDE.get(value, value)
        if isinstance(value, Tensor):
            self.floating = self.floating or value.is_floating_point() or value.is_complex()
            if value.dtype not in WIDE or (self.in_place and value is self.operand):
                return value
            return self.mode._table(value)
        if isinstance(value, str):
            return NAMES.get(value, value)
        if type(value) in (list, tuple):
            return type(value)(map(self.wide, value))
        return value


def _double(value: Any) -> Any:
    return value.to(WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in WIDE else value


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_each(part, change) for part in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value
    return change(value)


class LiftedBackward(TorchDispatchMode):
    """Computes a backward pass in float64: no other mode sees the Python code of custom gradients."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports `torch.compile` here (1.5 s)

    def __init__(self, pins: Pins) -> None:
        super().__init__()
        self.pins = pins

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        dtype = kwargs.get("dtype")
        if dtype in WIDE:
            if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                self.pins.note("cast", dtype)
            kwargs["dtype"] = WIDE[dtype]
        return func(*args, **kwargs)


@contextmanager
def default_float64() -> Iterator[None]:
    """Make PyTorch create float64 arrays if the code names no type."""
    with DEFAULT:
        old = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(old)


@contextmanager
def limits_of_float32() -> Iterator[None]:
    """Make `torch.finfo(torch.float64)` give this thread the limits of float32, which the model has in normal use."""
    original, thread = torch.finfo, threading.get_ident()

    def finfo(dtype: torch.dtype | None = None) -> Any:
        ours = threading.get_ident() == thread
        return original(torch.float32 if ours and dtype in (None, torch.float64) else dtype)  # pyright: ignore

    torch.finfo = finfo  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.finfo = original  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def lifted(net: nn.Module | None, pins: Pins | None) -> Iterator[None]:
    """Compute in float64 whatever types this thread's code names.

    Args:
        net: the network that runs, for the names of its layers.
        pins: gets the places that name a narrower type; with None nothing is lifted.
    """
    if pins is None:
        yield
        return
    names = {} if net is None else {id(module): name for name, module in net.named_modules()}
    with limits_of_float32(), Lifted(pins, lambda owner: names.get(id(owner))):
        yield


def backward(tensor: Tensor, pins: Pins | None, gradient: Tensor | None = None) -> None:
    """Run a backward pass; in float64 where pins are gathered."""
    with nullcontext() if pins is None else LiftedBackward(pins):
        tensor.backward(gradient)
