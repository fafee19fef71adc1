"""Say which other value of the reference a port takes, if no known mistake explains the port's value.

A port may connect right layers in the wrong way: it adds another residual, calls another layer, uses a parameter once
more, or calls a layer later than PyTorch does. Each row tries one such change in PyTorch, and is reported only if it
gives all of the port's numbers, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from parity.diagnosis.localise import FORWARD
from parity.diagnosis.operations import DifferingPlace, ReferenceNetwork, WayTo
from parity.diagnosis.recomputing import behind, replaced
from parity.numerics import bounds
from parity.running.taps import layer_of
from parity.traps.operations.own_norms import norm_of
from parity.traps.operations.parts import RANDOM, TRANSPARENT, Call, call_of, replayed
from parity.traps.operations.rotary_parts import FORMS, rotation_of

Array = np.ndarray
# The exceptions of a changed computation: the model's code may raise anything.
ERRORS = (Exception,)

# Limits of the search: calls and parameters before a place, and layers.
NEAR, PARAMETERS, LAYERS = 60, 12, 64
# Limits of recomputing for one row: how often, and how many numbers in total.
TIMES, NUMBERS = 600, 6e8


@dataclass(frozen=True)
class Wiring:
    """The port's value at a place, and the reference's values everywhere.

    Attributes:
        network: the reference.
        way: the reference's computation on the way to the place, with all calls of its run.
        got: the port's value there.
        values: by description, the inputs and outputs of every layer.
        spent: how often the way was recomputed for one row.
    """

    network: ReferenceNetwork
    way: WayTo
    got: Array
    values: Mapping[str, Array]
    spent: list[int] = field(default_factory=lambda: [0])

    @property
    def place(self) -> DifferingPlace:
        return self.way.place

    @property
    def random(self) -> bool:
        """Whether a call on the way is random, and cannot be recomputed."""
        return any(word in call.name for call in self.way.calls for word in RANDOM)

    def is_got(self, value: Any) -> bool:
        """Return whether a value is the port's, up to rounding."""
        if not isinstance(value, Tensor) or value.shape != self.got.shape or value.is_complex():
            return False
        counted = self.way.counted(value.detach().numpy())
        return bool(np.isfinite(counted).all() and bounds.distance(counted, self.got) <= self.allowed)

    @property
    def allowed(self) -> float:
        return FORWARD * (bounds.norm(self.got) or 1.0)

    def named(self, value: Array, allowed: float) -> str:
        """Return where the reference has a value; an empty text if it has it nowhere."""
        for name, array in self.values.items():
            if array.shape == value.shape and array.dtype.kind == "f" and bounds.distance(array, value) <= allowed:
                return name
        return ""

    @property
    def handed(self) -> Iterator[tuple[str, Tensor]]:
        """The outputs of layers that are used on the way, with the layers' calls; the nearest first."""
        names = {id(tensor): name for name, tensor in self.way.handed.items()}
        seen = [self.way.value] if self.way.value is not None else []
        seen += [t for call in reversed(self.way.calls) for t in call.tensors]
        for t in {id(t): t for t in seen}.values():
            if id(t) in names:
                yield names[id(t)], t

    def with_others(self, *pairs: tuple[Tensor, Tensor]) -> Any:
        """Return the reference's value at the place with some tensors replaced, given as pairs of old and new ones."""
        new = {id(a): b for a, b in pairs}
        if id(self.way.value) in new:
            self.count()
            return new[id(self.way.value)]
        at = [call.number for call in self.way.calls if any(id(t) in new for t in call.tensors)]

        def plant(function: Callable[..., Any], args: Any, kw: dict[str, Any]) -> Any:
            return function(*_put(args, new), **_put(kw, new))

        return self.with_plant(plant, at)

    def with_plant(self, plant: Callable[..., Any], at: Sequence[int]) -> Any:
        """Return the reference's value at the place with mistakes planted in some of its calls."""
        self.count()
        return replayed(self.way.value, self.way.calls, plant, at)

    def count(self) -> None:
        """Count that the way is computed again.

        Raises:
            RuntimeError: it was computed too often.
        """
        self.spent[0] += 1
        numbers = sum(t.numel() for call in self.way.calls for t in call.tensors)
        if self.spent[0] > TIMES or self.spent[0] * numbers > NUMBERS:
            raise RuntimeError("computed often enough")


def _put(value: Any, new: Mapping[int, Tensor]) -> Any:
    """Return a value with some tensors replaced, also inside lists."""
    if isinstance(value, dict):
        return {name: _put(item, new) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put(item, new) for item in value)
    return new.get(id(value), value)


def called(call: Call) -> str:
    """Return the description of a call: its name, its place, and the chain that it ends."""
    at = f"`{call.name}` ({call.place})" if call.place else f"`{call.name}`"
    if call.name in FORMS and rotation_of(call.function, call.args, call.kw) is not None:
        return f"{at}, the rotation of a rotary embedding,"
    if call.name in ("mul", "div", "add") and norm_of(call.function, call.args, call.kw) is not None:
        return f"{at}, a norm,"
    return at


def earlier(wiring: Wiring) -> str:
    """Return the value on the way to the place that the port has there."""
    for call in reversed(wiring.way.calls):
        for given in call.tensors:
            if call.name not in TRANSPARENT and wiring.is_got(given):
                return f"PyTorch's value before {called(call)}".rstrip(",")
    return ""


def another_input(wiring: Wiring) -> str:
    """Return which other value of the reference the port has, and which one PyTorch has."""
    place, expected = wiring.place, wiring.network.runs[wiring.place.train].seen_at(wiring.place.side)
    own = {f"what arrives at {place.call}"} if place.side == "enter" else {f"what {place.call} gives"}
    others = Wiring(wiring.network, wiring.way, wiring.got, {n: a for n, a in wiring.values.items() if n not in own})
    if not (name := others.named(wiring.got, wiring.allowed)):
        return ""
    if place.side != "enter":
        return name
    ours = others.named(expected[place.call], 0.0)
    return f"{name} as the input of {place.call}" + (f"; PyTorch's is {ours}" if ours else "")


def residual(wiring: Wiring) -> str:
    """Return which other value of the reference the port has in a sum of two."""
    adds = [call for call in reversed(wiring.way.calls) if call.name == "add" and len([*call.tensors]) == 2]
    for call in adds[:NEAR]:
        a, b = call.tensors
        if a.shape != b.shape or not a.is_floating_point():
            continue
        last = _through(wiring.way.value) is call
        for kept, other in ((b, a), (a, b)):
            names = [wiring.named(wiring.got - kept.detach().numpy(), wiring.allowed)] if last else wiring.values
            own = wiring.named(other.detach().numpy(), 0.0)
            for name in names if own else ():
                if name not in ("", own) and (last or _explains(wiring, call, kept, wiring.values[name])):
                    return f"PyTorch's value with another residual: {called(call)} adds {name} in place of {own}"
    return ""


def _explains(wiring: Wiring, call: Call, kept: Tensor, value: Array) -> bool:
    """Return whether a sum with this value gives the port's value."""
    if value.shape != kept.shape or value.dtype.kind != "f":
        return False
    plant = lambda *_: kept + torch.as_tensor(value)  # noqa: E731
    return wiring.is_got(wiring.with_plant(plant, [call.number]))


def _through(x: Any) -> Call | None:
    """Return the call that made a tensor, without calls that only hand it on."""
    while (call := call_of(x)) is not None and call.name in TRANSPARENT and call.args:
        x = call[0]
    return call


def another_layer(wiring: Wiring) -> str:
    """Return which other layer the port calls in place of one, or which other parameter it uses."""
    net, run = wiring.network.net, wiring.network.runs[wiring.place.train]
    parameters = dict(net.named_parameters())
    for call, handed in wiring.handed:
        name = layer_of(call)
        layer = net.get_submodule(name)
        own = dict(layer.named_parameters())
        if not own or call not in run.inputs or any(layer.children()):
            continue
        x = torch.as_tensor(run.inputs[call])
        others = [n for n in wiring.network.names if n != name and type(net.get_submodule(n)) is type(layer)]
        for other in others[:LAYERS]:
            theirs = dict(net.get_submodule(other).named_parameters())
            if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in theirs.items()}:
                continue
            if wiring.is_got(wiring.with_others((handed, _layer_with(layer, theirs, x, wiring.place.train)))):
                return f"PyTorch's value with another layer: {other} is called in place of {name}"
        for key, value in own.items():
            for other, p in parameters.items():
                if p.shape != value.shape or p is value or value.ndim < 2:
                    continue
                new = _layer_with(layer, {**own, key: p}, x, wiring.place.train)
                if wiring.is_got(wiring.with_others((handed, new))):
                    return f"PyTorch's value computed with {other} in place of {name}.{key}"
    return ""


def other_parameters(wiring: Wiring) -> str:
    """Return the other layer whose parameters the port takes, if no value at the layer itself shows it."""
    ours = {name: p.detach() for name, p in wiring.network.net.named_parameters()}
    used: dict[str, dict[str, Tensor]] = {}
    for call in wiring.way.calls:
        for t in (t for t in call.tensors if isinstance(t, nn.Parameter)):
            name = next((n for n, p in ours.items() if p.shape == t.shape and torch.equal(p, t)), "")
            used.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = t
    modules = dict.fromkeys(name.rpartition(".")[0] for name in ours)
    for module, tensors in used.items():
        for other in modules:
            theirs = {leaf: ours[f"{other}.{leaf}"] for leaf in tensors if f"{other}.{leaf}" in ours}
            if other == module or {n: p.shape for n, p in theirs.items()} != {n: t.shape for n, t in tensors.items()}:
                continue
            if wiring.is_got(wiring.with_others(*((t, theirs[leaf]) for leaf, t in tensors.items()))):
                return f"PyTorch's value with the parameters of {other} in place of those of {module}"
    return ""


def _layer_with(layer: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, train: bool) -> Tensor:
    """Return a layer's output with other parameters."""
    return functional_call(copy.deepcopy(layer).train(train), dict(parameters), (x,))


def moved(wiring: Wiring) -> str:
    """Return the call after which the port has a layer that PyTorch has before the call."""
    place = wiring.place
    if place.side != "enter" or (handed := wiring.way.handed.get(place.call)) is None:
        return ""
    x = torch.as_tensor(wiring.network.runs[place.train].inputs[place.call])
    if x.shape != handed.shape:
        return ""
    for call, value in behind(wiring.way.run, handed, x):
        if wiring.is_got(value):
            return f"what PyTorch has there after {called(call)} too: {place.call} comes after it instead of before"
    return ""


def layers_behind(wiring: Wiring) -> str:
    """Return the call after which the port has layers that PyTorch has before it, if no value at them shows it."""
    run, found = wiring.network.runs[wiring.place.train], dict[str, tuple[list[str], dict[int, Any]]]()
    for name, handed in wiring.handed:
        layer, x = wiring.network.net.get_submodule(layer_of(name)), run.inputs.get(name)
        if x is None or x.shape != handed.shape or any(layer.children()):
            continue
        for call, value in behind(wiring.way.calls, handed, torch.as_tensor(x)):
            if isinstance(value, Tensor) and value.shape == handed.shape and call.name not in TRANSPARENT:
                names, values = found.setdefault(called(call), ([], {}))
                names.append(name)
                values[call.number] = copy.deepcopy(layer).train(wiring.place.train)(value)
    for told, (names, values) in found.items():
        if wiring.is_got(_with_results(wiring, values)):
            return f"PyTorch's value with {' and '.join(names)} after {told} instead of before"
    return ""


def _with_results(wiring: Wiring, values: Mapping[int, Any]) -> Any:
    """Return the reference's value at the place if calls give other values, by their numbers."""
    wiring.count()
    return replaced(wiring.way.value, wiring.way.calls, values, {})


def parameter_again(wiring: Wiring) -> str:
    """Return which parameter of the module around the place the port also adds, or also multiplies by."""
    module = layer_of(wiring.place.call) if wiring.place.side == "leave" else ""
    module = module or layer_of(wiring.place.call).rpartition(".")[0]
    prefix = f"{module}." if module else ""
    named = ((n, p.detach()) for n, p in wiring.network.net.named_parameters() if n.startswith(prefix))
    vectors = [(n, p.flatten()) for n, p in named if max(p.shape, default=0) == p.numel() > 1][:PARAMETERS]
    layers = [*wiring.handed]
    used = {layer_of(call) for call, _ in layers}
    for told, shape, value in _results(wiring, layers):
        for name, p in vectors:
            for axis in {len(shape) - 1, 1} if len(shape) > 1 else ():
                if shape[axis] != len(p):
                    continue
                aligned = p.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                again = " again" if name.rpartition(".")[0] in used else ""
                if wiring.is_got(value(lambda y, p=aligned: y * p)):
                    return f"PyTorch's value computed with what {told} gives multiplied by {name}{again}"
                if wiring.is_got(value(lambda y, p=aligned: y + p)):
                    return f"PyTorch's value computed with {name} added{again} to what {told} gives"
    return ""


def _results(
    wiring: Wiring, layers: Sequence[tuple[str, Tensor]]
) -> Iterator[tuple[str, torch.Size, Callable[[Callable[[Tensor], Tensor]], Any]]]:
    """Yield the outputs of layers and calls on the way: name, shape, and the place's value if the output changes."""
    for name, tensor in layers:
        if tensor.is_floating_point():
            yield name, tensor.shape, lambda change, t=tensor: wiring.with_others((t, change(t)))
    for call in [*reversed(wiring.way.calls)][:NEAR]:
        result = call.function(*call.given(), **call.kw)
        if isinstance(result, Tensor) and result.is_floating_point():
            yield called(call), result.shape, lambda change, c=call: _changed(wiring, c, change)


def _changed(wiring: Wiring, call: Call, change: Callable[[Tensor], Tensor]) -> Any:
    plant = lambda function, args, kw: change(function(*args, **kw))  # noqa: E731
    return wiring.with_plant(plant, [call.number])


# The rows, in the order of the search: whether they recompute the way, and the function that describes the result.
ROWS: tuple[tuple[bool, Callable[[Wiring], str]], ...] = (
    (False, another_input),
    (False, earlier),
    (True, residual),
    (True, another_layer),
    (True, other_parameters),
    (False, moved),
    (True, layers_behind),
    (True, parameter_again),
)


def explain(network: ReferenceNetwork, place: DifferingPlace, got: Array) -> str:
    """Return which other value of the reference the port has at a place; an empty text if none explains it."""
    run = network.runs[place.train]
    values = {
        **{f"what {call} gives": array for call, array in run.outputs.items()},
        **{f"what arrives at {call}": array for call, array in run.inputs.items()},
    }
    way = network.on_the_way_to(place, keep=True)
    wiring = Wiring(network, way, way.counted(got), values)
    for again, row in ROWS:
        if way.value is None or (again and wiring.random):
            continue
        wiring.spent[0] = 0
        try:
            with torch.no_grad():
                said = row(wiring)
        except ERRORS:
            continue
        if said:
            return said
    return ""
