"""Arrays in zarr, version 2 and 3: a small JSON file, and the array in pieces.

tensorstore decodes the pieces. It trusts the claims of the JSON file and of the pieces, and too large a claim ends the
process. So this module first counts shape, pieces and types, examines each piece before it is decoded, and then gives
tensorstore the examined bytes from memory.

Source: the zarr specifications v2 and v3 (`sharding_indexed`: a piece of smaller ones with an index at its end).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ports.weights.files.budget import Budget
from ports.weights.files.formats import dtype_of
from ports.weights.files.formats.compressed import most
from ports.weights.files.formats.jsons import table

PIECES = 10**6
DIMENSIONS = 32  # what tensorstore allows
EMPTY = 2**64 - 1
CHECKSUM = 4
Get = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Zarr:
    """The description of one array.

    Attributes:
        driver: tensorstore's name for the version.
        pieces: the shape of a piece.
        inner: the shape of the smaller pieces in a piece; None if there are none.
        compressor: of a piece, or of its smaller pieces, as the file names it.
        tail: bytes of checksums after a piece.
        key: gives the name of a piece from its place.
    """

    driver: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[int, ...]
    inner: tuple[int, ...] | None
    compressor: object
    tail: int
    key: Callable[[tuple[int, ...]], str]

    def __post_init__(self) -> None:
        for sizes, least in ((self.shape, 0), (self.pieces, 1), (self.inner or (), 1)):
            if len(sizes) > DIMENSIONS or any(not least <= n < EMPTY for n in sizes):
                raise ValueError(f"shape {str(self.shape)[:60]} in pieces of {str(sizes)[:60]}")
        if not len(self.shape) == len(self.pieces) == len(self.inner or self.shape):
            raise ValueError(f"shape {str(self.shape)[:60]} in pieces of {str(self.pieces)[:60]}")
        if math.prod(self.counts) > PIECES:
            raise ValueError(f"{math.prod(self.counts):,} pieces")

    @property
    def counts(self) -> list[int]:
        """The number of pieces along each axis."""
        return [-(-n // piece) for n, piece in zip(self.shape, self.pieces, strict=True)]

    @property
    def piece(self) -> int:
        """The bytes of a piece."""
        return math.prod(self.pieces) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """The bytes of the array, of whole pieces; at least one piece."""
        return max(math.prod(self.counts), 1) * self.piece

    def names(self) -> Iterator[str]:
        """Return the names of all pieces."""
        return map(self.key, itertools.product(*map(range, self.counts)))

    def most(self, content: bytes) -> int:
        """Return the bytes that decoding a piece may take.

        Raises:
            ValueError: it does not decode to a piece.
        """
        if self.inner is None:
            return most(self.compressor, content[: len(content) - self.tail], self.piece)
        count = math.prod(n // inner for n, inner in zip(self.pieces, self.inner, strict=True))
        index = content[-16 * count - CHECKSUM :]
        if len(index) != 16 * count + CHECKSUM:
            raise ValueError("a piece that is too short for its index")
        size, total = math.prod(self.inner) * self.dtype.itemsize, self.piece
        for at, length in struct.iter_unpack("<2Q", index[:-CHECKSUM]):
            if (at, length) != (EMPTY, EMPTY):
                if at + length > len(content):
                    raise ValueError("an index that points out of its piece")
                total += most(self.compressor, content[at : at + length - self.tail], size) - size
        return total


def _second(about: dict[str, Any]) -> Zarr:
    compressor = about.get("compressor")
    if about.get("filters"):
        raise ValueError("filters of zarr, which Orbax does not write")
    separator = about.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise ValueError("an unknown separator in the names of pieces")
    return Zarr(
        "zarr",
        _sizes(about["shape"]),
        dtype_of(str(about["dtype"])),
        _sizes(about["chunks"]),
        None,
        None if compressor is None else str(compressor["id"]),
        0,
        lambda at: separator.join(map(str, at)) or "0",
    )


def _third(about: dict[str, Any]) -> Zarr:
    if about["chunk_grid"]["name"] != "regular" or about.get("storage_transformers"):
        raise ValueError("pieces of unequal size, which Orbax does not write")
    codecs, inner = about["codecs"], None
    names = [codec["name"] for codec in codecs]
    if names == ["sharding_indexed"]:
        own = codecs[0]["configuration"]
        if own.get("index_location", "end") != "end" or [c["name"] for c in own["index_codecs"]] != ["bytes", "crc32c"]:
            raise ValueError("an index of pieces that Orbax does not write")
        inner, codecs = _sizes(own["chunk_shape"]), own["codecs"]
        names = [codec["name"] for codec in codecs]
    names = [name for name in names if name not in ("bytes", "transpose")]
    tail = CHECKSUM if names[-1:] == ["crc32c"] else 0
    names = names[:-1] if tail else names
    if len(names) > 1 or "sharding_indexed" in names:
        raise ValueError(f"codecs {str(names)[:60]}, expected one at most")
    return Zarr(
        "zarr3",
        _sizes(about["shape"]),
        dtype_of(str(about["data_type"])),
        _sizes(about["chunk_grid"]["configuration"]["chunk_shape"]),
        inner,
        names[0] if names else None,
        tail,
        _third_key(about["chunk_key_encoding"]),
    )


def _third_key(encoding: dict[str, Any]) -> Callable[[tuple[int, ...]], str]:
    default = encoding["name"] == "default"
    separator = (encoding.get("configuration") or {}).get("separator", "/" if default else ".")
    if encoding["name"] not in ("default", "v2") or separator not in (".", "/"):
        raise ValueError("an unknown separator in the names of pieces")
    if default:
        return lambda at: separator.join(("c", *map(str, at)))
    return lambda at: separator.join(map(str, at)) or "0"


def _sizes(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list):
        raise ValueError("a shape that is not a list")
    if any(type(n) is not int for n in sizes):
        raise ValueError(f"a shape of {str(sizes)[:60]}, expected whole numbers")
    return tuple(sizes)


DESCRIPTIONS = {".zarray": _second, "zarr.json": _third}


class Reader:
    """Reads arrays one after another within a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._most = budget, 0

    def read(self, get: Get, missing: bool) -> np.ndarray:
        """Return an array.

        Args:
            get: gives the content of a file of the array; None if there is no such file.
            missing: whether pieces may be missing; such pieces hold the fill value.

        Raises:
            ValueError: a piece is missing or damaged, or the description is.
            WeightsError: it takes more memory than the checkpoint may take.
        """
        name, text = next(((name, text) for name in DESCRIPTIONS if (text := get(name)) is not None), ("", b""))
        if not name:
            raise ValueError("no such array")
        try:
            zarr = DESCRIPTIONS[name](table(text, self._budget, "its description"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is damaged ({type(error).__name__}: {str(error)[:60]})") from None
        self._budget.take(math.prod(zarr.shape) * zarr.dtype.itemsize)
        self._at_a_time(zarr.size)
        store, total = _Store(zarr, name, text), zarr.size
        for key in zarr.names():
            content = get(key)
            if content is not None:
                total += len(content) + zarr.most(content) - zarr.piece
                self._at_a_time(total)
                store.put(key, content)
            elif not missing:
                raise ValueError(f"the piece {key} is missing")
        return store.read()

    def _at_a_time(self, count: int) -> None:
        """Count memory that is released before the next array is read."""
        if count > self._most:
            self._budget.take(count - self._most, "the pieces of one tensor")
            self._most = count


class _Store:
    """An array in memory, for tensorstore to decode."""

    def __init__(self, zarr: Zarr, name: str, text: bytes) -> None:
        import tensorstore as ts

        self._zarr = zarr
        self._context = ts.Context({"data_copy_concurrency": {"limit": 1}, "cache_pool": {"total_bytes_limit": 0}})
        self._files = ts.KvStore.open({"driver": "memory"}, context=self._context).result()
        self.put(name, text)

    def put(self, name: str, content: bytes) -> None:
        """Add a file."""
        self._files.write(name, content).result()

    def read(self) -> np.ndarray:
        """Return the array."""
        import tensorstore as ts

        zarr, spec = self._zarr, {"driver": self._zarr.driver, "kvstore": {"driver": "memory"}}
        array = ts.open(spec, context=self._context, read=True, open=True).result().read().result()
        if (array.shape, array.dtype) != (zarr.shape, zarr.dtype.newbyteorder("=")):
            raise ValueError(f"is {array.dtype} {array.shape}, expected {zarr.dtype} {zarr.shape}")
        return array
