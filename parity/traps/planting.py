"""Tools to plant traps: other settings, tensors, functions and arguments; and how to plant a trap in a layer."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.trap import Trap

Values = Sequence[Any]

# The name of a mistake in the network's inputs, among the names of functions.
INPUT = "input"


def setting(**values: Any) -> Callable[[Any], nn.Module | None]:
    """Other settings of the layer; None if it has them already."""

    def plant(layer: Any) -> nn.Module | None:
        if all(getattr(layer, name) == value for name, value in values.items()):
            return None
        for name, value in values.items():
            setattr(layer, name, value)
        return layer

    return plant


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], nn.Module | None]:
    """Another weight or statistic; None if the layer has none, or if the shape would change."""

    def plant(layer: Any) -> nn.Module | None:
        old = getattr(layer, name, None)
        if old is None or (new := change(old.detach())).shape != old.shape:
            return None
        with torch.no_grad():
            old.copy_(new.clone())
        return layer

    return plant


def instead(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another function of the first argument."""
    return lambda _, args, kw: function(args[0] if args else kw["input"])


# Leaves out the function.
MISSING = instead(lambda x: x)


def argument(args: Values, kw: dict[str, Any], i: int, name: str, default: Any) -> Any:
    """A call's argument, by position or by name."""
    return args[i] if len(args) > i else kw.get(name, default)


def with_argument(i: int, name: str, default: Any, value: Any) -> Callable[..., Any]:
    """The same call with another argument; None if it has this argument already."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        old = argument(args, kw, i, name, default)
        new = value(old) if callable(value) else value
        if old is new or (not isinstance(old, Tensor) and old == new):
            return None
        if len(args) > i:
            return function(*args[:i], new, *args[i + 1 :], **kw)
        return function(*args, **{**kw, name: new})

    return plant


def plant_in(trap: Trap, layer: nn.Module) -> bool:
    """Plant `trap` in `layer`, which keeps its name, type and tensors. Return whether the layer can have it."""
    assert trap.plant is not None
    plant = trap.plant
    planted = plant(layer)
    if planted is None or planted is layer:
        return planted is not None
    original: Any = type(layer)

    def forward(self: nn.Module, *args: Any, **kw: Any) -> Any:
        wrapper: Any = plant(_unhooked(self, original))
        wrapper.training = self.training
        return wrapper(*args, **kw)

    layer.__class__ = type(original.__name__, (original,), {"forward": forward})
    return True


def _unhooked(layer: Any, original: type) -> Any:
    """Return a copy of `layer` that shares its tensors and has its original type and no hooks.

    The wrapper of a trap calls the layer inside the layer's own call. With hooks this would be recorded as a second
    call, which no port has, and the layer would not be compared.
    """
    inner = copy.copy(layer)
    inner.__class__ = original
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(inner, hooks, OrderedDict())
    return inner
