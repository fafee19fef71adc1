"""Flax models as libraries hand them out: objects that hold a Linen module and its parameters.

The check calls such an object itself, through its public `__call__`, so that it also compares the object's default
arguments. It only looks at attributes, and imports no library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, unfreeze

from parity.numerics.calls import Holder, itself
from ports.errors import UserError


@dataclass(frozen=True)
class ModelObject:
    """One kind of model object.

    Attributes:
        detect: whether a value is one.
        net: gives the Flax model in it, whose weights are read and written.
        holder: takes an object, and gives a function from the running module to the callable in its place.
        written: gives the object with the weights of another `net`.
        layout: how it takes the inputs; None for the defaults of Flax.
    """

    detect: Callable[[Any], bool]
    net: Callable[[Any], Any]
    holder: Callable[[Any], Holder]
    written: Callable[[Any, Any], Any]
    layout: str | None


@dataclass(frozen=True)
class OpenedModel:
    """A Flax model as it was given.

    Attributes:
        net: an `nnx.Module`, or Linen's `(module, variables)`.
        holder: from the running module to the object that is called.
        written: takes `net` with other weights, and gives the object that the caller gets back.
        layout: how it takes the inputs; None for the defaults of Flax.
    """

    net: Any
    holder: Holder = itself
    written: Callable[[Any], Any] = itself
    layout: str | None = None


def _is_holder(value: Any) -> bool:
    """Return whether a value is callable and holds a Linen module with its parameters."""
    if isinstance(value, nn.Module | nnx.Module | type) or not callable(value) or not hasattr(value, "__dict__"):
        return False
    named = {*vars(value), *dir(type(value))} >= {"module", "params"}  # reading `params` may raise
    return named and isinstance(getattr(value, "module", None), nn.Module)


def _variables(value: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module and its variables; the object may keep other collections with its parameters."""
    name = type(value).__name__
    try:
        params = value.params
    except (ValueError, AttributeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: its parameters cannot be read: {said}; expected a model with parameters") from error
    if not isinstance(params, Mapping):
        raise UserError(f"{name}.params: got {type(params).__name__}, expected the parameters of its module")
    held = unfreeze(FrozenDict(params))
    return value.module, held if "params" in held else {"params": held}


class _Running:
    """Replaces the module of a model object while the check runs it: `apply` calls the running module."""

    def __init__(self, bound: nn.Module) -> None:
        self._bound, self._given = bound, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def apply(self, _: Any, *args: Any, rngs: Any = None, method: Any = None, mutable: Any = False, **kw: Any) -> Any:
        """Call the running module, whose variables and random keys the check has set already."""
        if method is None or isinstance(method, str):
            values = getattr(self._bound, method or "__call__")(*args, **kw)
        else:
            values = method(self._bound, *args, **kw)
        if not mutable:
            return values
        self._given.append((values, {}))  # the check itself reads the variables that changed
        return self._given[-1]

    def outputs(self, values: Any) -> Any:
        """Return only the outputs, if the object returned the result of `apply`."""
        return values[0] if any(values is both for both in self._given) else values


def _called_in_place(value: Any) -> Holder:
    """Return the function from the running module to a copy of a model object that runs it."""

    def holder(bound: nn.Module) -> Any:
        running = _Running(bound)

        def call(self: Any, *args: Any, **kw: Any) -> Any:
            return running.outputs(type(value).__call__(self, *args, **kw))

        call.__wrapped__ = type(value).__call__  # pyright: ignore[reportFunctionMemberAccess]
        own = {"module": property(lambda _: running), "__call__": call, "__module__": type(value).__module__}
        new = copy.copy(value)
        object.__setattr__(new, "__class__", type(type(value).__name__, (type(value),), own))  # it may be frozen
        return new

    return holder


def _with_weights(value: Any, net: tuple[nn.Module, Mapping[str, Any]]) -> Any:
    """Return a copy of a model object with these variables."""
    new = copy.copy(value)
    nested = "params" in value.params
    object.__setattr__(new, "params", dict(net[1]) if nested else net[1]["params"])
    return new


# The first that fits is taken.
OBJECTS = (ModelObject(_is_holder, _variables, _called_in_place, _with_weights, "same"),)


def opened(model: Any) -> OpenedModel:
    """Return the Flax model in a model object; any other model as it is.

    Raises:
        UserError: a model object without parameters.
    """
    for row in OBJECTS:
        if row.detect(model):
            return OpenedModel(row.net(model), row.holder(model), partial(row.written, model), row.layout)
    return OpenedModel(model)
