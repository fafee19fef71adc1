"""The reader of Flax's msgpack: one value after another, each counted before it is made.

A header of five bytes may claim 2**32 values, and a value of one byte may become 100 bytes of objects. Libraries
allocate what is claimed. Here a length is first compared with the rest of the file, and counted in the budget.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md and `flax/serialization.py`.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ports.weights.files.formats import dtype_of, unique
from ports.weights.files.source import Source, Stream

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
DEEPEST = 100  # maps within maps
DIMENSIONS = 64  # what numpy allows
OBJECT, PAIR = 64, 200  # bytes of a small object; of a place in a dict, with its key
VALUE, TEXT, BYTES, LIST, MAP, EXTENSION = "value", "text", "bytes", "list", "map", "extension"
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
LENGTHS = {
    first + i: (kind, code)
    for kind, first, codes in (
        (BYTES, 0xC4, (">B", ">H", ">I")),
        (EXTENSION, 0xC7, (">B", ">H", ">I")),
        (TEXT, 0xD9, (">B", ">H", ">I")),
        (LIST, 0xDC, (">H", ">I")),
        (MAP, 0xDE, (">H", ">I")),
    )
    for i, code in enumerate(codes)
}
SHORT = ((0x80, MAP, 0x0F), (0x90, LIST, 0x0F), (0xA0, TEXT, 0x1F))  # first byte, kind, bits of the length
FIXED = {0xD4 + i: 1 << i for i in range(5)}  # extensions of 1, 2, 4, 8, 16 bytes
SMALLEST = {MAP: 2}  # bytes of a value of this kind for each that its header claims


class Decoder:
    """Decodes one file."""

    def __init__(self, source: Source, stream: Stream) -> None:
        self._stream, self._size, self._budget = stream, source.file.size, source.budget
        self._makers = {
            TEXT: self._text,
            BYTES: self._bytes,
            LIST: self._list,
            MAP: self._map,
            EXTENSION: self._extension,
        }

    def whole(self) -> Any:
        """Return the tree of the file: dicts of text, arrays, and plain values.

        Raises:
            ValueError: it is not one value of msgpack, or one that Flax does not write.
            WeightsError: it takes more memory than the file may take.
        """
        tree = self._value(0)
        if self._stream.tell() != self._size:
            raise ValueError(f"{self._size - self._stream.tell():,} bytes follow the tree")
        return tree

    def _value(self, depth: int) -> Any:
        kind, value = self._head()
        if kind == VALUE:
            return value
        if depth >= DEEPEST:
            raise ValueError(f"more than {DEEPEST} tables within one another")
        return self._makers[kind](value, depth + 1)

    def _head(self) -> tuple[str, Any]:
        """Return the kind of the next value, and the value itself or its length."""
        byte = self._take(1)[0]
        if byte < 0x80 or byte >= 0xE0:
            return VALUE, byte if byte < 0x80 else byte - 0x100
        if byte in CONSTANTS:
            return VALUE, CONSTANTS[byte]
        if byte in NUMBERS:
            return VALUE, self._number(NUMBERS[byte])
        if byte in LENGTHS:
            kind, code = LENGTHS[byte]
            return self._fits(kind, self._number(code))
        if byte in FIXED:
            return self._fits(EXTENSION, FIXED[byte])
        for first, kind, mask in SHORT:
            if first <= byte <= first + mask:
                return self._fits(kind, byte & mask)
        raise ValueError(f"an unknown value of msgpack (0x{byte:02x})")

    def _fits(self, kind: str, count: int) -> tuple[str, int]:
        left = self._size - self._stream.tell()
        if count * SMALLEST.get(kind, 1) > left:
            raise ValueError(f"a {kind} of {count:,}, but {left:,} bytes are left")
        return kind, count

    def _take(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) != count:
            raise ValueError("ends within a value")
        return content

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, count: int, depth: int) -> str:
        text = self._take(count).decode()
        self._budget.take(sys.getsizeof(text), "its text")
        return text

    def _bytes(self, count: int, depth: int) -> bytes:
        self._budget.take(count + OBJECT, "its text")
        return self._take(count)

    def _list(self, count: int, depth: int) -> dict[str, Any]:
        """Return a list as Flax keeps it: a map of positions."""
        self._budget.take(OBJECT + PAIR * count, "its lists")
        return {str(i): self._value(depth) for i in range(count)}

    def _map(self, count: int, depth: int) -> Any:
        self._budget.take(2 * OBJECT + PAIR * count, "its maps")
        found = unique((self._key(), self._value(depth)) for _ in range(count))
        return self._chunked(found) if CHUNKED in found else found

    def _key(self) -> str:
        kind, value = self._head()
        if kind == TEXT:
            return self._text(value, 0)
        if type(value) is not int or kind != VALUE:
            raise ValueError("the key of a map is neither text nor a whole number")
        return str(value)

    def _chunked(self, found: dict[str, Any]) -> np.ndarray:
        """Return an array of more than 2**30 bytes, which is written in pieces."""
        sizes, chunks = _ordered(found.get("shape")), _ordered(found.get("chunks"))
        shape = _sizes(sizes)
        if not chunks or any(not isinstance(chunk, np.ndarray) or chunk.ndim != 1 for chunk in chunks):
            raise ValueError("an array in pieces without its pieces")
        if len({chunk.dtype for chunk in chunks}) != 1 or sum(chunk.size for chunk in chunks) != math.prod(shape):
            raise ValueError(f"an array in pieces that do not make up its shape {str(shape)[:60]}")
        self._budget.take(sum(chunk.nbytes for chunk in chunks))
        return np.concatenate(chunks).reshape(shape)

    def _extension(self, count: int, depth: int) -> Any:
        (code,) = struct.unpack(">b", self._take(1))
        end = self._stream.tell() + count
        if code in (ARRAY, SCALAR):
            value: Any = self._array()
        elif code == COMPLEX:
            value = self._complex()
        else:
            raise ValueError(f"unknown extension {code}")
        if self._stream.tell() != end:
            raise ValueError("an array or number is not as long as it says")
        return value

    def _complex(self) -> complex:
        head, *parts = (self._head() for _ in range(3))
        if head != (LIST, 2) or any(kind != VALUE or type(part) not in (int, float) for kind, part in parts):
            raise ValueError("a complex number is not two numbers")
        return complex(*(part for _, part in parts))

    def _array(self) -> np.ndarray:
        """Return an array, which is written as its shape, the name of its type, and its bytes."""
        if self._head() != (LIST, 3):
            raise ValueError("an array is not shape, type and bytes")
        kind, count = self._head()
        if kind != LIST or count > DIMENSIONS:
            raise ValueError("an array without a shape")
        shape = _sizes([n if kind == VALUE else None for kind, n in (self._head() for _ in range(count))])
        kind, length = self._head()
        dtype = dtype_of(self._text(length, 0) if kind == TEXT else "no text")
        kind, length = self._head()
        if kind != BYTES or length != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array {dtype} {str(shape)[:60]} has {length if kind == BYTES else 0:,} bytes")
        self._budget.take(length + OBJECT)
        content = bytearray(length)
        if self._stream.readinto(content) != length:
            raise ValueError("ends within an array")
        array = np.frombuffer(content, dtype).reshape(shape)
        return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _ordered(table: object) -> list[Any]:
    """Return the values of a map of positions in their order."""
    if not isinstance(table, dict) or table.keys() != set(map(str, range(len(table)))):
        raise ValueError("an array in pieces without its pieces")
    return [table[str(i)] for i in range(len(table))]


def _sizes(sizes: Iterable[Any]) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if len(sizes) > DIMENSIONS or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(f"shape {str(sizes)[:60]} is not a list of sizes")
    return sizes
