"""The calls in PyTorch's pickles, and the records of tensors that they give.

Source: `torch/_weights_only_unpickler.py` lists the calls, `torch/_utils.py` and `torch/_tensor.py` say what they do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ports.weights.files.formats.pickles import OBJECT, PAIR, SLOT, Machine, Name, Record, key_of

STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "Untyped": "uint8",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
# What a file may name without calling it: types of numbers, of tensors and of storages.
NUMBERS = r"bool|b?float(16|32|64)|float[84]_\w+|complex\d+|q?u?int\d+(x\d+)?|bits\w+|per_(tensor|channel)_\w+"
TENSORS = r"(cuda\.)?(sparse\.)?\w*Tensor|nn\.parameter\.Parameter"
NAMES = re.compile(rf"torch\.({NUMBERS}|{TENSORS}|(cuda\.|storage\.)?\w+Storage)")
UNKNOWN = {
    "_rebuild_qtensor": ("a quantised tensor", ".dequantize()"),
    "_rebuild_sparse_tensor": ("a sparse tensor", ".to_dense()"),
    "_rebuild_nested_tensor": ("a nested tensor", ".to_padded_tensor(0)"),
    "_rebuild_meta_tensor_no_storage": ("a tensor without values (meta device)", ".to_empty(device='cpu') and values"),
    "_rebuild_wrapper_subclass": ("a tensor of a class of its own", "as a plain tensor"),
    "_rebuild_device_tensor_from_numpy": ("a tensor of another device", ".cpu()"),
    "_rebuild_device_tensor_from_cpu_tensor": ("a tensor of another device", ".cpu()"),
}


@dataclass(frozen=True)
class Made:
    """A PyTorch value that is not a tensor: its constructor, and the text and numbers that this takes."""

    name: str
    args: tuple[str | int, ...]


@dataclass(frozen=True)
class Storage:
    """A storage: numbers in the file, or a part of them.

    Attributes:
        whole: the number of elements in the file.
        first: the first element of the part.
        count: the number of elements of the part.
    """

    key: str
    dtype: str
    whole: int
    first: int
    count: int


@dataclass(frozen=True)
class View(Record):
    """A tensor: a part of a storage; `offset` and `strides` in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Unknown(Record):
    """A tensor of a kind that cannot be read, and how to save it instead."""

    kind: str
    mend: str


def storage(which: object) -> Storage:
    """Return the storage of a persistent id: `('storage', type, key, location, count[, view])`."""
    if type(which) is not tuple or len(which) not in (5, 6) or which[0] != "storage":
        raise ValueError("refers to something that is not a storage")
    _, kind, key, _, count, *view = which
    if not isinstance(kind, Name) or not (found := STORAGE.fullmatch(kind.name)) or not isinstance(key, str):
        raise ValueError("refers to a storage of an unknown type")
    size, first = _size(count), 0
    if view and view[0] is not None:  # (key, first element, number of elements)
        _, first, size = view[0]
    return Storage(key, STORAGES.get(found[1], found[1]), _size(count), _size(first), _size(size))


def _size(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"a size or place that is not a number from 0: {str(number)[:40]}")
    return number


def _tensor(
    machine: Machine,
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    *rest: object,
    dtype: str | None = None,
) -> View | Unknown:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)`, and older ones."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor without a storage and a shape")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    machine.pay(OBJECT + 2 * SLOT * len(shape))
    metadata = rest[2] if len(rest) > 2 else None
    if isinstance(metadata, dict) and any(value is True for value in metadata.values()):
        return Unknown("a conjugated or negated view", ".resolve_conj().resolve_neg()")
    sizes = tuple(map(_size, shape)), tuple(map(_size, strides))
    return View(storage, dtype or storage.dtype, _size(offset), *sizes)


def _tensor_v3(
    machine: Machine, storage: object, offset: object, shape: object, strides: object, *rest: object
) -> View | Unknown:
    """`_rebuild_tensor_v3(…, requires_grad, hooks, dtype, metadata)`: the storage has no type."""
    grad, hooks, dtype, *metadata = rest
    if not isinstance(dtype, Name) or not dtype.name.startswith("torch."):
        raise ValueError("a tensor without a type")
    name = dtype.name.removeprefix("torch.")
    return _tensor(machine, storage, offset, shape, strides, grad, hooks, *metadata, dtype=name)


def _parameter(machine: Machine, data: object = None, *_: object) -> Any:
    if not isinstance(data, View | Unknown):
        raise ValueError("a parameter without a tensor")
    return data


def _typed(machine: Machine, function: object, kind: object, args: object, state: object) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a tensor with attributes, which are left out."""
    if not isinstance(kind, Name) or kind.name not in ("torch.Tensor", PARAMETER):
        return Unknown("a tensor of a class of its own", "as a plain tensor")
    result = machine.made(function, args)
    if not isinstance(result, View | Unknown):
        raise ValueError("a tensor that is made of something else")
    return result


def _table(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs.items()) if type(pairs) is dict else pairs
    if type(pairs) not in (list, tuple):
        raise ValueError(f"a table of a {type(pairs).__name__}")
    machine.stack.append({})
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise ValueError("a table that is not made of pairs")
        machine.fill(list(pair))
    return machine.stack.pop()


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise ValueError(f"a set of a {type(items).__name__}")
    machine.pay(PAIR * len(items))
    return set(map(key_of, items))


def _encoded(machine: Machine, text: object, encoding: object = "latin1") -> bytes:
    """Bytes, as Python 2's protocol writes them."""
    if type(text) is not str or encoding not in ENCODINGS:
        raise ValueError("encodes something that is not text, or not as bytes")
    machine.pay(4 * len(text))
    return text.encode(encoding)


def _bytearray(machine: Machine, content: Any = b"", encoding: Any = "latin1") -> bytearray:
    if type(content) is str:
        content = _encoded(machine, content, encoding)
    if type(content) not in (bytes, bytearray):
        raise ValueError(f"a bytearray of a {type(content).__name__}, expected bytes")
    machine.pay(len(content))
    return bytearray(content)


def _complex(machine: Machine, real: Any, imaginary: Any = 0.0) -> complex:
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        raise ValueError("a complex number that is not made of numbers")
    return complex(real, imaginary)


def _shape(machine: Machine, sizes: Any = ()) -> tuple[Any, ...]:
    if type(sizes) not in (list, tuple):
        raise ValueError(f"a torch.Size of a {type(sizes).__name__}")
    machine.pay(SLOT * len(sizes))
    return tuple(sizes)


def _made(name: str) -> Callable[..., Made]:
    def call(machine: Machine, *args: Any) -> Made:
        if len(args) > 2 or any(type(arg) not in (str, int) for arg in args):
            raise ValueError(f"a {name} that is not made of text and numbers")
        return Made(name, args)

    return call


def _unknown(kind: str, mend: str) -> Callable[..., Unknown]:
    return lambda machine, *_: Unknown(kind, mend)


ENCODINGS = ("latin1", "latin-1", "iso8859-1", "utf-8", "utf8")
PARAMETER = "torch.nn.parameter.Parameter"
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _table,
    "collections.Counter": _table,
    "builtins.set": _set,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _encoded,
    "torch.Size": _shape,
    "torch.device": _made("torch.device"),
    "torch.serialization._get_layout": _made("torch.serialization._get_layout"),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    PARAMETER: _parameter,
    **{f"torch._utils.{name}": _unknown(*texts) for name, texts in UNKNOWN.items()},
}
