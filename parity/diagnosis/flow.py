"""Which operations of the reference compute what arrives at a layer, and in which modules these operations are.

A forced run of a port may show that a layer gets a wrong value although all recorded layers give right ones. The
mistake is then in the operations between these layers. The reference runs once, and notes for each operation what it is
computed from. A value that arrives at a layer comes from a set of operations: its slice. Operations that are also in
the slice of a right value are right themselves. The innermost module around the other operations is the place.

An operation that only the port has leaves no trace here. So the output that a layer hands on also counts as an
operation, of the module that calls the layer: there the port may have changed it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parity.numerics.layouts import leaves
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.taps import Tap, layer_of

# A place where values are seen: `enter` or `leave` of a call, or `end` of an output of the network.
Place = tuple[str, str]

# Operations that pass a difference on unchanged, as in a residual stream.
SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__", "dropout", "dropout_"})
# `Operation.name` of a value that a layer hands on.
HANDED = "(handed on)"
# `Operation.name` of an input of the network, which no code of the network computes.
GIVEN = "(given)"
WRITING = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"})


@dataclass(frozen=True)
class Operation:
    """One call of a function in the reference.

    Attributes:
        modules: the modules whose code calls it, by name, from the network (an empty name) inward; at least one.
        parts: the numbers of the operations whose results it takes.
    """

    name: str
    modules: tuple[str, ...]
    parts: frozenset[int] = frozenset()


@dataclass
class Flow:
    """The operations of one run in one mode.

    Attributes:
        operations: in order; their number is their place here.
        arrivals: by place, the operations from which the value there comes.
        handed: by place, the operation that represents the value that a call gets or hands on.
        callers: by call, the modules whose code calls it.
        sequences: the modules that are a `Sequential`, whose code does nothing but call its parts in turn.
    """

    operations: list[Operation] = field(default_factory=list)
    arrivals: dict[Place, frozenset[int]] = field(default_factory=dict)
    handed: dict[Place, int] = field(default_factory=dict)
    callers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sequences: frozenset[str] = frozenset()

    def add(self, operation: Operation) -> frozenset[int]:
        """Note an operation; return a set with its number."""
        self.operations.append(operation)
        return frozenset({len(self.operations) - 1})

    def slice(self, place: Place) -> frozenset[int]:
        """Return all operations between the recorded layers and a place."""
        return frozenset(self._above(self.arrivals.get(place, frozenset())))

    def users(self, place: Place) -> frozenset[int]:
        """Return the operations through which the value at a place goes, up to the next recorded layers."""
        found = {self.handed[place]} if place in self.handed else set[int]()
        for number, operation in enumerate(self.operations):
            if not operation.parts.isdisjoint(found):
                found.add(number)
        return frozenset(found)

    def computed(self, numbers: Collection[int]) -> frozenset[int]:
        """Return those of some operations that compute with what layers give; without any with the inputs, or all.

        A model may compute tables of positions, or masks, for all of its layers; they are wrong where layers use them.
        """
        for sources in ((HANDED,), (HANDED, GIVEN)):
            moving: set[int] = set()
            for number in sorted(self._above(numbers)):
                operation = self.operations[number]
                if operation.name in sources or not moving.isdisjoint(operation.parts):
                    moving.add(number)
            if found := moving & {*numbers}:
                return frozenset(found)
        return frozenset(numbers)

    def _above(self, numbers: Collection[int]) -> set[int]:
        """Return operations with all from which their values come, up to the recorded layers."""
        waiting, found = [*numbers], set[int]()
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.operations[number].parts
        return found

    def takes_more(self, call: str) -> bool:
        """Return whether a layer takes other values than its first input: a memory, a mask."""
        layer, used = layer_of(call), (self.operations[number] for number in self.slice(("leave", call)))
        return ("enter", call) in self.handed and any(layer not in operation.modules for operation in used)

    def module_around(self, numbers: Iterable[int], call: str) -> str:
        """Return the innermost module around operations, or around a call if there are none. The network is `""`.

        The inputs of the network are not operations of any module.
        """
        computed = (self.operations[number] for number in numbers)
        around = [o.modules for o in computed if o.name != GIVEN] or [self._givers(call)]
        levels = takewhile(lambda level: len({*level}) == 1, zip(*around, strict=False))
        return [level[0] for level in levels][-1]

    def _givers(self, call: str) -> tuple[str, ...]:
        """Return the modules around a call, up to the innermost one whose code chooses the arguments of the call."""
        modules = self.callers.get(call, ("",))
        while len(modules) > 1 and modules[-1] in self.sequences:
            modules = modules[:-1]
        return modules


class _Noting(TorchFunctionMode, Tap):
    """Notes every operation, and the values that arrive at recorded layers."""

    def __init__(self, flow: Flow, forced: Collection[Place]) -> None:
        super().__init__()
        self.flow, self.forced = flow, forced
        self.running = [""]  # the network, whichever method of it is called
        self.busy = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.busy:
            return func(*args, **kwargs)
        parts = frozenset[int]().union(*(_parts(t) for t in _tensors((args, kwargs))))
        value = func(*args, **kwargs)
        changed = [args[0]] if name in WRITING or (name.endswith("_") and not name.endswith("__")) else []
        given = {id(tensor) for tensor in _tensors(args)}  # `contiguous` may return its own input
        new = [tensor for tensor in _tensors(value) if id(tensor) not in given]
        new += [*_tensors(changed), *_tensors(kwargs.get("out"))]
        if new:
            number = self.flow.add(Operation(name, tuple(self.running), parts))
            for tensor in new:
                _set(tensor, number)
            for tensor in _tensors(changed):
                _write(tensor, number)
        return value

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Note no operation inside this block."""
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def hand_on(self, value: Tensor, modules: tuple[str, ...]) -> Tensor:
        """Return a copy of a value that comes only from a recorded place."""
        new = value.clone()
        _set(new, self.flow.add(Operation(HANDED, modules)))
        return new

    def enter(self, name: str, x: Tensor) -> Tensor:
        with self.unseen():
            self.flow.arrivals["enter", name] = _parts(x)
            self.flow.callers[name] = tuple(self.running)
            if ("enter", name) not in self.forced:
                return x
            self.flow.handed["enter", name] = len(self.flow.operations)
            return self.hand_on(x, (*self.running, name))

    def leave(self, name: str, y: Tensor) -> Tensor:
        with self.unseen():
            self.flow.arrivals["leave", name] = _parts(y)
            if ("leave", name) not in self.forced:
                return y
            self.flow.handed["leave", name] = len(self.flow.operations)
            return self.hand_on(y, tuple(self.running))


def of_reference(net: nn.Module, probe: Probe, names: Collection[str], forced: Collection[Place], train: bool) -> Flow:
    """Run the PyTorch network once, and note its operations.

    Args:
        names: the modules that are recorded.
        forced: the places where the port got the reference's values.
    """
    net, flow = copy.deepcopy(net).train(train), Flow()
    noting = _Noting(flow, forced)

    def push(name: str) -> Any:
        return lambda *_: noting.running.append(name)

    def pop(*_: object) -> None:
        noting.running.pop()

    # The caller of a recorded layer enters and leaves it: the module itself runs after the entry and before the exit.
    inside = [(name, module) for name, module in net.named_modules() if name]
    flow.sequences = frozenset(name for name, module in inside if _is_plain_sequence(module))
    for _, module in inside:
        module.register_forward_hook(pop)
    with torch.no_grad(), run_pytorch.tapped(net, noting, names):
        for name, module in inside:
            module.register_forward_pre_hook(push(name))
        inputs = run_pytorch.inputs_of(probe)
        for _, tensor in leaves(inputs, "input"):
            _set(tensor, flow.add(Operation(GIVEN, ("",))))
        with noting:
            values = run_pytorch.run(net, probe, inputs)
    for name, value in leaves(values, "output"):
        flow.arrivals["end", name] = _parts(value)
        flow.callers[name] = ("",)
    return flow


def _is_plain_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


# The tensor itself holds what it comes from and what changed its memory, so both disappear with the tensor.
FROM, WRITTEN = "_parity_from", "_parity_written"


def _parts(tensor: Tensor) -> frozenset[int]:
    with torch._C.DisableTorchFunction():
        base = tensor._base
        written = getattr(tensor if base is None else base, WRITTEN, frozenset[int]())
        return getattr(tensor, FROM, frozenset[int]()) | written


def _set(tensor: Tensor, number: frozenset[int]) -> None:
    setattr(tensor, FROM, number)


def _write(tensor: Tensor, number: frozenset[int]) -> None:
    """Note that memory was changed, which other views of it also show."""
    with torch._C.DisableTorchFunction():
        owner = tensor if tensor._base is None else tensor._base
        setattr(owner, WRITTEN, getattr(owner, WRITTEN, frozenset[int]()) | number)
