"""What an entry of the catalogue is, in a layer and in an operation, and what most of them are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Values = Sequence[Any]

# The name under which a mistake in the network's inputs stands among the functions.
INPUT = "input"


@dataclass(frozen=True)
class Trap:
    """One known mistake.

    Attributes:
        layers: the types of PyTorch's layer where it can be made.
        plant: makes it in a layer, which it may change; None where this layer cannot have it.
        text: what the port does, and what PyTorch does.
        mend: what to write in the port.
        gradient: whether the outputs are right and the gradients are not.
    """

    name: str
    layers: tuple[type[nn.Module], ...]
    plant: Callable[[Any], nn.Module | None]
    text: str
    mend: str
    gradient: bool = False


def setting(**values: Any) -> Callable[[Any], nn.Module | None]:
    """Other settings of the layer; None where it has them already."""

    def plant(layer: Any) -> nn.Module | None:
        if all(getattr(layer, name) == value for name, value in values.items()):
            return None
        for name, value in values.items():
            setattr(layer, name, value)
        return layer

    return plant


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], nn.Module | None]:
    """Another weight or statistic; None where the layer has none, or another shape would come out."""

    def plant(layer: Any) -> nn.Module | None:
        old = getattr(layer, name, None)
        if old is None or (new := change(old.detach())).shape != old.shape:
            return None
        with torch.no_grad():
            old.copy_(new.clone())
        return layer

    return plant


@dataclass(frozen=True)
class Operation:
    """One known mistake in an operation.

    Attributes:
        functions: the names of PyTorch's functions where it can be made (`add` stands for `a + b`).
        plant: from (function, positional and named arguments) to another value; None where this call cannot have it.
        text: what the port does, and what PyTorch does.
        mend: what to write in the port.
        gradient: whether the values are right and the gradients are not.
    """

    name: str
    functions: tuple[str, ...]
    plant: Callable[[Callable[..., Any], Values, dict[str, Any]], Any]
    text: str
    mend: str
    gradient: bool = False


def instead(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another function of the first argument."""
    return lambda _, args, kw: function(args[0] if args else kw["input"])


def named(**values: Any) -> Callable[..., Any]:
    """The same function with other settings."""
    return lambda function, args, kw: function(*args[:1], **{**kw, **values}) if len(args) < 2 else None


def argument(args: Values, kw: dict[str, Any], i: int, name: str, default: Any) -> Any:
    """A call's argument, by place or by name."""
    return args[i] if len(args) > i else kw.get(name, default)
