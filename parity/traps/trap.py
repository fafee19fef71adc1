"""The record of a known mistake of ports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

PlantedIn = Literal["weight", "layer", "between", "loss", "training"]


# In place of a function's name: the class of the port's layer, if PyTorch's code computes the norm by operations.
LAYER = "(the layer)"


@dataclass(frozen=True)
class Argument:
    """An argument in the port's code that is the whole mistake.

    Attributes:
        name: its name in Flax, JAX or optax.
        function: the last name of the class or function that takes it; empty for the class of the layer itself. If a
            PyTorch function has its own counterpart, `arguments.COUNTERPARTS` has the name.
        value: the right value, if it is the same in every port; otherwise `arguments` reads it from PyTorch's side.
    """

    name: str
    function: str = ""
    value: Any = None


@dataclass(frozen=True)
class Trap:
    """One known mistake, which can be planted, found and named.

    | `place`    | `where` names                       | `plant` takes                        | `plant` returns       |
    |------------|-------------------------------------|--------------------------------------|-----------------------|
    | `weight`   | groups of `layers.kinds`            | a tensor in PyTorch's layout         | one form, or several  |
    | `layer`    | PyTorch's types of layers           | a layer, which it may change         | that layer or another |
    | `between`  | PyTorch's functions                 | function, arguments, named arguments | another value         |
    | `loss`     | functions that PyTorch's loss calls | function, arguments, named arguments | another value         |
    | `training` | optimizers, or a part of training   | a training                           | another training      |

    Attributes:
        place: where the mistake is planted.
        where: where it can be made; an empty tuple means everywhere.
        plant: makes the mistake; it returns None if this tensor, layer or call cannot have it. The field is None if
            only `related`, several tensors together, or several places together show the mistake.
        text: what the port does, and what PyTorch does.
        mend: what to write in the port instead.
        source: pages of the frameworks' documentation, given by the names that they describe, and papers.
        gradient: whether the values are right and the gradients are not.
        arguments: the wrong arguments, if the mistake is an argument; for a bare name, a table in `arguments` reads the
            value.
        related: recognises a mistake from PyTorch's and the port's tensor, if the planted form would depend on the
            port.
    """

    name: str
    place: PlantedIn
    where: tuple[type[nn.Module] | str, ...]
    plant: Callable[..., Any] | None
    text: str
    mend: str
    source: str
    gradient: bool = False
    arguments: tuple[str | Argument, ...] = ()
    related: Callable[[np.ndarray, np.ndarray], bool] | None = None

    @property
    def layers(self) -> tuple[type[nn.Module], ...]:
        """The types of PyTorch's layers where it can be made."""
        return tuple(item for item in self.where if isinstance(item, type))

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds, functions or optimizers where it can be made."""
        return tuple(item for item in self.where if isinstance(item, str))

    @property
    def places(self) -> tuple[str, ...]:
        """The names of all layers, functions, kinds or optimizers where it can be made, without their dimensions."""
        names = (item if isinstance(item, str) else item.__name__ for item in self.where)
        return tuple(dict.fromkeys(re.sub("[123]d$", "", name.strip("_")) for name in names))

    @property
    def listed_where(self) -> str:
        """Where it can be made, as `parity traps` lists it."""
        listed = ", ".join(self.places)
        return f"weights of {listed or 'any layer'}" if self.place == "weight" else listed or "any operation"
