"""Arguments of Flax's layers, read off PyTorch's: what a port must be given where a mistake is a wrong argument."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from parity.traps.trap import Trap

Value = float | int | str | tuple[Any, ...]


def _alike(values: tuple[Any, ...]) -> Value:
    """One number for all dimensions, where they are alike."""
    return values[0] if len({*values}) == 1 else values


def _padding(layer: Any) -> Value:
    if isinstance(layer.padding, str):
        return layer.padding.upper()
    found = _alike(tuple(layer.padding))
    return tuple((p, p) for p in found) if isinstance(found, tuple) else found


def _momentum(layer: Any) -> Value | None:
    """Flax's momentum is the weight of the old value: 0.9 where PyTorch's is 0.1."""
    return None if layer.momentum is None else round(1 - layer.momentum, 12)


ARGUMENTS: dict[str, Callable[[Any], Value | None]] = {
    "epsilon": lambda layer: layer.eps,
    "momentum": _momentum,
    "num_groups": lambda layer: layer.num_groups,
    "strides": lambda layer: _alike(tuple(layer.stride)),
    "kernel_dilation": lambda layer: _alike(tuple(layer.dilation)),
    "padding": _padding,
}
"""By the names of Flax's arguments, what gives each from PyTorch's layer; None where no value does."""


def mended(trap: Trap, layer: nn.Module) -> list[tuple[str, Value | None, Value]]:
    """Return the arguments that mend a mistake in a layer: each with what the port gives and what it must give.

    What the port gives is None where the layer with the mistake has no such setting.
    """
    if not trap.arguments or trap.plant is None or (planted := trap.plant(copy.copy(layer))) is None:
        return []
    alike = isinstance(planted, type(layer))
    readers = ((name, ARGUMENTS[name]) for name in trap.arguments)
    values = ((name, read(planted) if alike else None, read(layer)) for name, read in readers)
    return [(name, got, expected) for name, got, expected in values if expected is not None and got != expected]
