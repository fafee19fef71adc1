"""safetensors: a header of JSON and the tensors one after another.

Tensors are read when they are used, and written one by one.

Source: the format's description in the safetensors README. The reader checks everything that it demands, because the
offsets come from the file itself: known types, sizes that match the shapes, no gap, no overlap, nothing outside.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.files.budget import JSON
from ports.weights.files.formats import SUM, Content, arrays, checked, checksum, dtype_of, unique
from ports.weights.files.source import Source
from ports.weights.files.stored import Stored
from ports.weights.form.lazy import pieces
from ports.weights.form.torch_form import WeightsError

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
CODES = {name: code for code, name in DTYPES.items()}
LARGEST_HEADER = 100_000_000
METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header describes it; `begin` and `end` count from the end of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A whole header; `start` is where the first tensor may begin in the file."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    start: int


def header(source: Source) -> Header:
    """Read and check the header alone.

    Raises:
        ValueError: it violates the format.
    """
    file = source.file
    size = file.size
    if size < 8:
        raise ValueError("too short for a header")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > LARGEST_HEADER or length > size - 8:
        raise ValueError(f"the header claims {length:,} bytes, the file has {size:,}")
    source.budget.take(JSON * length, "its header")
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise ValueError("the header does not begin with '{'")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("the header is not an object")
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{METADATA} is not a table of text")
    entries = {name: _entry(name, entry) for name, entry in content.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise ValueError(
                f"{name[:80]!r} begins at {entry.begin:,}, expected {at:,}: tensors overlap or leave a gap"
            )
        at = entry.end
    if at != size - 8 - length:
        raise ValueError(f"the tensors take {at:,} bytes, the file has {size - 8 - length:,} for them")
    return Header(entries, metadata, 8 + length)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(name: str, entry: object) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r}: expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name[:80]!r}: unknown type {str(code)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_whole, shape)):
        raise ValueError(f"{name[:80]!r}: shape {str(shape)[:60]} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError(f"{name[:80]!r}: data_offsets {str(offsets)[:60]} are not two positions")
    dtype, (begin, end) = dtype_of(DTYPES[code]), offsets
    if (expected := math.prod(shape) * dtype.itemsize) != end - begin:
        raise ValueError(f"{name[:80]!r}: {code} {shape} takes {expected:,} bytes, data_offsets give {end - begin:,}")
    return TensorEntry(dtype, tuple(shape), begin, end)


def read(source: Source, check: bool = True) -> Content:
    """Return the tensors of a file, which are read when they are used."""
    found = header(source)
    if not found.entries:
        raise WeightsError(f"weights {source.path}: holds no tensors")
    tree = {n: Stored(e.shape, e.dtype, source.file, found.start + e.begin) for n, e in found.entries.items()}
    return Content(dict(tree), checked(found.metadata, tree.items(), check))


def write(path: Path, content: Content) -> None:
    """Sort the widest types first, so that each tensor begins at a multiple of its width."""
    tensors = arrays(content.tree)
    for name, array in tensors.items():
        if array.dtype.name not in CODES:
            raise WeightsError(f"{name}: safetensors has no type {array.dtype}")
        if name == METADATA:
            raise WeightsError(f"{name}: is a name that safetensors keeps for itself")
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    places, at = {}, 0
    for name in order:
        places[name] = (at, at + tensors[name].nbytes)
        at += tensors[name].nbytes
    about = {**content.metadata, SUM: checksum(tensors.items())}
    table: dict[str, Any] = {METADATA: dict(sorted(about.items()))}
    for name, array in tensors.items():
        table[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": list(places[name]),
        }
    text = _encoded(table)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in pieces(tensors[name]):
                file.write(piece)


def _encoded(table: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise WeightsError("a tensor's name is not valid Unicode, which safetensors cannot hold") from None
    return text + b" " * (-len(text) % 8)
