"""Shared code of the NNX and the Linen writer: from places in a model to the torch form and back.

A place is a layer's leaf rule with the slots that hold it. A slot has `shape`, `dtype` and `get()`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing

from ports import families
from ports.weights.form.torch_form import Rule, Target, WeightsError, describe, lossless, match
from ports.weights.layers.leaves import Leaf
from ports.weights.live.stacks import Held, copies, levels


@runtime_checkable
class Slot(Protocol):
    """One Flax variable."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.typing.DTypeLike: ...
    @property
    def key(self) -> Hashable:
        """The same for two slots that are one variable."""

    def get(self) -> np.ndarray: ...


S = TypeVar("S", bound=Slot)


@dataclass(frozen=True)
class Part(Generic[S]):
    """One layer's part of a variable that holds a stack of layers.

    Attributes:
        slot: the whole variable.
        at: the axes that are taken out, one after the other, and the layer's index on each.
    """

    slot: S
    at: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.slot.shape)
        for axis, _ in self.at:
            del shape[axis]
        return tuple(shape)

    @property
    def dtype(self) -> np.typing.DTypeLike:
        return self.slot.dtype

    @property
    def key(self) -> Hashable:
        return self.slot.key, self.at

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the view of an array like the whole variable."""
        for axis, index in self.at:
            array = array[(slice(None),) * axis + (index,)]
        return array

    def get(self) -> np.ndarray:
        return self.of(self.slot.get())


@dataclass(frozen=True)
class Place(Generic[S]):
    """One PyTorch tensor of a Flax model.

    Attributes:
        like: the slot whose type the tensor has, if it has no slots.
        layer: the name of its layer; a layer of a stack has its number in it.
        module: the name of the module that holds the variables; all layers of a stack share one.
        number: which layer of the stack.
        own: whether it has no rule, so that it is taken as it is.
    """

    leaf: Leaf
    slots: Sequence[S | Part[S]]
    like: S | Part[S] | None = None
    layer: str = ""
    module: str = ""
    number: int = 0
    own: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Return the tensor's type in the torch form."""
        return np.dtype(self.leaf.dtype or (self.slots[0] if self.slots else self.like).dtype)  # pyright: ignore

    def read(self, copy: bool = True) -> np.ndarray:
        if any(slot.get().dtype == object for slot in self.slots):
            raise WeightsError(
                f"{self.leaf.torch}: holds no array: the network is abstract, or its variables are boxed"
            )
        array = self.leaf.to_torch(tuple(slot.get() for slot in self.slots))
        array = np.array(array, order="C") if copy else array
        return array.astype(self.dtype) if self.leaf.dtype or not self.slots else array

    @property
    def target(self) -> Target:
        """Shape and type in the torch form."""
        if self.leaf.to_torch is Leaf.to_torch:  # the layout is the same; most are
            return Target(self.slots[0].shape, self.dtype)
        shape = self.leaf.to_torch(tuple(np.broadcast_to(np.int8(0), slot.shape) for slot in self.slots)).shape
        return Target(shape, self.dtype)


@dataclass(frozen=True)
class Found(Generic[S]):
    """A tensor as the walk over the modules finds it; a `Place` is made from it.

    Attributes:
        path: the name of its module.
        own: whether it has no rule.
    """

    path: str
    leaf: Leaf
    slots: tuple[S, ...]
    like: S | None = None
    own: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The name of its module in parts."""
        return tuple(self.path.split(".")) if self.path else ()


def stated(owner: object) -> frozenset[str]:
    """Return the PyTorch names of tensors that belong to no layer, for a network of this package; otherwise nothing.

    Its description says that both frameworks hold them in the same layout. In somebody's own model such a variable
    needs a rule.
    """
    spec = getattr(owner, "spec", None)
    if not families.is_description(spec):
        return frozenset()
    return frozenset(layer.torch for layer in families.layers(spec) if layer.type == "tensor")


def in_stacks(found: Sequence[Found[S]]) -> dict[str, Place[S]]:
    """Return the places, each layer of a stack with its own."""
    filled = [one for one in found if one.slots]
    # A variable without values is refused when it is read.
    shapes = [getattr(one.slots[0], "shape", ()) for one in filled]
    held = [Held(one.parts, at, None if one.own else one.leaf.axes) for one, at in zip(filled, shapes, strict=True)]
    stacks = dict(zip(map(id, filled), levels(held), strict=True))
    places: dict[str, Place[S]] = {}
    for one in found:
        for layer, at, number in copies(one.parts, stacks.get(id(one), ())):
            slots = [Part(slot, at) if at else slot for slot in one.slots]
            name = ".".join((*layer, one.leaf.torch))
            if name in places:  # the same name in two collections
                name = f"{name}@{one.leaf.collection}"
            places[name] = Place(one.leaf, slots, one.like, ".".join(layer), one.path, number, one.own)
    return places


def plan(
    places: Mapping[str, Place[S]], weights: Mapping[str, Any], rules: Sequence[Rule]
) -> list[tuple[S, np.ndarray]]:
    """The new value of every slot in the slot's type: views of `weights` if they already have this type.

    Raises:
        WeightsError: the weights do not fit.
    """
    values = match(weights, {name: place.target for name, place in places.items()}, rules)
    new: list[tuple[S | Part[S], np.ndarray]] = []
    problems = []
    seen: dict[Any, tuple[str, np.ndarray]] = {}
    for name, place in places.items():
        try:
            arrays = place.leaf.to_flax(values[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        for slot, array in zip(place.slots, arrays, strict=True):
            array = array.reshape(slot.shape) if place.leaf.reshaped else array
            cast = lossless(array, np.dtype(slot.dtype))
            if cast is None:
                problems.append(f"{name}: got {array.ravel()[0]}, which does not fit the model's {slot.dtype}")
            else:
                other, value = seen.setdefault(slot.key, (name, cast))
                if value is not cast and value.tobytes() != cast.tobytes():
                    problems.append(f"{name}: is one tensor with {other} in the model, got other values")
                new.append((slot, cast))
    if problems:
        raise WeightsError(problems)
    return _whole(new)


def _whole(new: Sequence[tuple[S | Part[S], np.ndarray]]) -> list[tuple[S, np.ndarray]]:
    """Put the parts of stacks together; the places of a model have all of them."""
    stacks: dict[Hashable, np.ndarray] = {}
    found: list[tuple[S, np.ndarray]] = []
    for slot, array in new:
        if not isinstance(slot, Part):
            found.append((slot, array))
            continue
        if slot.slot.key not in stacks:
            stacks[slot.slot.key] = np.empty(slot.slot.shape, np.dtype(slot.slot.dtype))
            found.append((slot.slot, stacks[slot.slot.key]))
        slot.of(stacks[slot.slot.key])[...] = array
    return found


def unstacked(places: Mapping[str, Place[S]]) -> dict[str, tuple[Leaf, list[S]]]:
    """Return the leaves and whole variables of places; it does not take an optimizer's state of a stack apart.

    Raises:
        WeightsError: the places that are parts of a stack of layers.
    """
    found = {name: [slot for slot in place.slots if not isinstance(slot, Part)] for name, place in places.items()}
    if parts := [name for name, place in places.items() if len(found[name]) < len(place.slots)]:
        raise WeightsError(
            f"{describe(parts)}: layers in a stack (scan, vmap); move their weights, not their optimizer's state"
        )
    return {name: (place.leaf, found[name]) for name, place in places.items()}


def to_jax(arrays: Sequence[np.ndarray], copy: bool) -> list[jax.Array]:
    """JAX arrays with these values and types: copies, or the same memory if that is possible."""
    if not copy and jax.default_backend() == "cpu":
        return [_shared(array) for array in arrays]
    # XLA changes the layout of one array at a time, so two threads share the arrays, the largest first.
    order = sorted(range(len(arrays)), key=lambda i: -arrays[i].nbytes)
    parts = [order[0::2], order[1::2]]
    copied = _threads().map(_copies, [[arrays[i] for i in part] for part in parts])
    made = dict(zip(chain(*parts), chain(*copied), strict=True))
    return [made[i] for i in range(len(arrays))]


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that are kept: the first allocations of new threads would make two slower than one."""
    return ThreadPoolExecutor(2, thread_name_prefix="ports-weights")


def _copies(arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    """When this returns, only the caller uses their memory. JAX may keep the memory of a contiguous array."""
    own = [np.array(array) if array.flags.c_contiguous else array for array in arrays]
    with jax.enable_x64(True):  # a setting of the thread: a float64 model keeps its type, whichever thread writes it
        return jax.block_until_ready(jax.device_put(own))


def _shared(array: np.ndarray) -> jax.Array:
    with jax.enable_x64(True):
        try:
            return jax.dlpack.from_dlpack(array)
        except (BufferError, TypeError, ValueError):  # read-only, or a type or strides that dlpack does not support
            return jnp.array(array)
