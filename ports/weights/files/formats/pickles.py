"""Pickles of PyTorch's files, read without running anything.

A pickle is a program for a machine with a stack. Here the machine knows only some calls, which are rows of a table
(`torchcalls.py`). It imports and calls nothing that the file names. A file that asks for more is refused, with the name
of what it would run. The memory of each instruction's result is counted before the next instruction is read.

Source: `pickletools` says which instructions there are.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ports.weights.files.source import Source
from ports.weights.form.torch_form import WeightsError


@dataclass(frozen=True)
class Name:
    """An object that a file names, such as `torch.float32`. It is never looked up while the pickle is read."""

    name: str


class Record:
    """A tensor, as the result of a call."""


PLAIN = (str, bytes, int, float, complex, type(None), Name)
Refer = Callable[[Any], Any]
LONGEST = 255  # bytes of an integer
LARGEST = 1 << 60  # of the integers that are keys: hashes of larger ones can be made to collide
BATCH = 1 << 20
OBJECT, SLOT, PAIR = 64, 16, 112  # bytes of a small object, of a place in a list and in a table


class Machine:
    """Reads one pickle after another from a stream.

    Args:
        calls: what a pickle may call, by name; each gets the machine and the arguments.
        names: what it may name without calling it.
        refer: gives the object of a persistent id.
    """

    def __init__(
        self, source: Source, calls: Mapping[str, Callable[..., Any]], names: re.Pattern[str], refer: Refer
    ) -> None:
        self._path, self._budget, self._owed = source.path, source.budget, 0
        self._calls, self._names, self._refer = calls, names, refer

    def load(self, stream: io.BufferedIOBase) -> Any:
        """Return the object in the next pickle of the stream.

        Raises:
            ValueError: it is not a pickle, or one that PyTorch does not write.
            WeightsError: it would run code, or takes more memory than the file may take.
        """
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for code, argument, _ in pickletools.genops(stream):  # pyright: ignore[reportArgumentType]
                self._step(code.name, argument)
        except (IndexError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a pickle that PyTorch wrote ({type(error).__name__})") from None
        self._settle()
        if len(self.stack) != 1 or self._marks:
            raise ValueError(f"not a pickle that PyTorch wrote ({len(self.stack)} results)")
        return self.stack.pop()

    def pay(self, count: int) -> None:
        """Count memory; ask the budget once for many small objects."""
        self._owed += count
        if self._owed >= BATCH:
            self._settle()

    def _settle(self) -> None:
        self._budget.take(max(self._owed, 0), "its pickle")
        self._owed = 0

    def marked(self) -> list[Any]:
        """Return the values above the last mark."""
        items, self.stack = self.stack, self._marks.pop()
        self.pay(-2 * OBJECT)
        return items

    def _step(self, name: str, argument: object) -> None:
        if name in VALUES:
            self.pay(SLOT + (0 if argument is None or name == "BININT1" else sys.getsizeof(argument)))
            self.stack.append(VALUES[name](argument))
        elif name in NEW:
            make, cost = NEW[name]
            self.pay(cost)
            self.stack.append(make())
        elif name in STEPS:
            STEPS[name](self, argument)
        else:
            raise ValueError(f"not a pickle that PyTorch wrote (instruction {name})")

    def mark(self, _: object) -> None:
        self.pay(2 * OBJECT)
        self._marks.append(self.stack)
        self.stack = []

    def put(self, index: int | None) -> None:
        index = len(self._memo) if index is None else int(index)
        self.pay(0 if index in self._memo else PAIR)
        self._memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.pay(SLOT)
        self.stack.append(self._memo[int(index)])

    def group(self, count: int | None) -> None:
        """Replace the last `count` values, or those above the mark, by a tuple."""
        items = self.marked() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.pay(OBJECT + SLOT * len(items))
        self.stack.append(tuple(items))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        self.pay(SLOT * len(items))
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            self.pay(PAIR * len(items))
            target.update(map(key_of, items))
        else:
            raise ValueError(f"appends to a {type(target).__name__}")

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"writes pairs into a {type(target).__name__}")
        self.pay(PAIR * (len(items) // 2 + (not target)))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key_of(key) in target:
                raise ValueError(f"the key {str(key)[:80]!r} is there twice")
            target[key] = value

    def name(self, argument: str | None) -> None:
        """Push the object that a file names by module and name."""
        if argument is None:
            last, module = self.stack.pop(), self.stack.pop()
        else:
            module, _, last = argument.partition(" ")
        if not isinstance(module, str) or not isinstance(last, str):
            raise ValueError("names something that is not text")
        module, last = _compat_pickle.NAME_MAPPING.get(
            (module, last), (_compat_pickle.IMPORT_MAPPING.get(module, module), last)
        )
        full = f"{module}.{last}"
        if full not in self._calls and not self._names.fullmatch(full):
            raise self.refused(full)
        self.pay(3 * OBJECT + len(full))
        self.stack.append(Name(full))

    def refused(self, name: str) -> WeightsError:
        """Return the refusal of a pickle that asks for more than tensors."""
        name = ascii(name)[1:-1][:100]
        return WeightsError(f"weights {self._path}: it would run {name}; refused. Save the model's state_dict() alone")

    def call(self, count: int) -> None:
        """Replace a name and its arguments by the result of the call; keyword arguments are not supported."""
        if count == 3 and self.stack.pop():
            raise ValueError("calls with keyword arguments")
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.made(function, args))

    def made(self, function: object, args: object) -> Any:
        """Return the result of a known call."""
        if not isinstance(function, Name) or type(args) is not tuple:
            raise ValueError(f"calls a {type(function).__name__}")
        if function.name not in self._calls:
            raise self.refused(function.name)
        self.pay(4 * OBJECT)
        return self._calls[function.name](self, *args)

    def refer(self, _: object) -> None:
        """Replace a persistent id by its object."""
        self.pay(4 * OBJECT)
        self.stack.append(self._refer(self.stack.pop()))

    def build(self, _: object) -> None:
        """Leave out the attributes of a table (`_metadata` of a state_dict) and of PyTorch 0.3's parameters."""
        state, target = self.stack.pop(), self.stack[-1]
        old = isinstance(target, Record) and type(state) is tuple and len(state) == 3  # requires_grad, volatile, hooks
        if type(target) is not dict and not old:
            raise ValueError(f"sets attributes of a {type(self.stack[-1]).__name__}")


def key_of(key: object) -> Any:
    """Return a key that is quick to hash: hashing nested tuples takes for ever, and large integers collide."""
    for part in key if type(key) is tuple else (key,):
        if not isinstance(part, PLAIN):
            raise ValueError(f"a key of type {type(part).__name__}")
        if type(part) is int and abs(part) >= LARGEST:
            raise ValueError("a key that is a large integer")
    return key


def _integer(number: int) -> int:
    if number.bit_length() > 8 * LONGEST:
        raise ValueError(f"an integer of {number.bit_length() // 8:,} bytes")
    return number


def _text(latin: str) -> str:
    """Return a text of Python 2, whose bytes `pickletools` takes for Latin-1."""
    return latin.encode("latin-1").decode()


def _refused(name: str) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, argument: object) -> None:
        raise machine.refused(f"{name} {argument}")

    return step


def _inst(machine: Machine, argument: str) -> None:
    args = tuple(machine.marked())
    machine.name(argument)
    machine.stack.append(machine.made(machine.stack.pop(), args))


def _obj(machine: Machine, _: object) -> None:
    function, *args = machine.marked()
    machine.stack.append(machine.made(function, tuple(args)))


def _list(machine: Machine, _: object) -> None:
    machine.stack.append(machine.marked())


def _dict(machine: Machine, _: object) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.fill(items)


def _pop(machine: Machine, _: object) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT", "FLOAT"), lambda x: x),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda x: x),
}
NEW: dict[str, tuple[Callable[[], Any], int]] = {
    "EMPTY_LIST": (list, 2 * OBJECT),
    "EMPTY_DICT": (dict, OBJECT),
    "EMPTY_SET": (set, 4 * OBJECT),
}
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": Machine.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "TUPLE": lambda machine, _: machine.group(None),
    "TUPLE1": lambda machine, _: machine.group(1),
    "TUPLE2": lambda machine, _: machine.group(2),
    "TUPLE3": lambda machine, _: machine.group(3),
    "LIST": _list,
    "DICT": _dict,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.fill([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.fill(machine.marked()),
    "POP": _pop,
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.name,
    "REDUCE": lambda machine, _: machine.call(2),
    "NEWOBJ": lambda machine, _: machine.call(2),
    "NEWOBJ_EX": lambda machine, _: machine.call(3),
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": Machine.build,
    "BINPERSID": Machine.refer,
    **{name: _refused(name) for name in ("EXT1", "EXT2", "EXT4")},
}
