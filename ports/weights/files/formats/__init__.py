"""Files of weights: one table of formats, each with a reader and a writer of the same content.

| format        | what it is                                                              | metadata        |
|---------------|-------------------------------------------------------------------------|-----------------|
| `torch`       | PyTorch's `.pt .pth .th .bin .ckpt`; nothing in it is run              | a record in it  |
| `safetensors` | `.safetensors`, read where it is used                                   | its own         |
| `sharded`     | a folder of safetensors files with `model.safetensors.index.json`        | of each shard   |
| `npz`         | NumPy's `.npz`                                                           | the zip comment |
| `msgpack`     | Flax's `.msgpack` (`flax.serialization`)                                 | no room for it  |
| `orbax`       | a folder as `orbax.checkpoint.StandardCheckpointer` restores it          | its own         |

A format without checksums of its own but with room for metadata (`sums`) gets one there (`crc32`: of all names, types,
shapes and numbers). Files by other programs have none, and msgpack has no room for it: there a flipped bit in a number
goes unnoticed.

A file's content is a tree: dicts of text to arrays, to dicts, or (PyTorch, msgpack) to plain numbers and text. A flat
format holds one level. Only the format that is read or written is imported. A reader takes a `Source` and asks its
`budget` before it decodes anything. An array may be `Lazy`: then its numbers stay in the file until they are used.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ports.weights.files.guard import faults_of
from ports.weights.files.source import Source
from ports.weights.form.lazy import Array, is_array, pieces
from ports.weights.form.torch_form import WeightsError

Tree = dict[Any, Any]  # keys are text; a file of PyTorch's may have others, such as the numbers of parameters
INDEX, SUM = ".index.json", "crc32"
# Names of the file in a folder with one file and no index; the first pattern that a file matches decides.
WHOLE = ("model.safetensors", "*.safetensors", "*model*.bin")


@dataclass
class Content:
    """The content of a file: a tree, and text about it.

    Attributes:
        source: where it was read, if it was read; `unchanged` says whether the file is still the same.
    """

    tree: Tree
    metadata: dict[str, str] = field(default_factory=dict)
    source: Source | None = None


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Attributes:
        module: of this package, with `read(source) -> Content` and `write(path, content, **options)`.
        folder: whether it is a folder, not a file.
        nested: whether it holds trees; otherwise it holds one level of arrays.
        plain: whether it holds numbers and text besides arrays.
        sums: whether it has no checksums of its own, but room for one.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    folder: bool = False
    nested: bool = False
    plain: bool = False
    sums: bool = False


FORMATS = {
    row.name: row
    for row in (
        Format("torch", (".pt", ".pth", ".th", ".bin", ".ckpt"), "torchfile", nested=True, plain=True),
        Format("safetensors", (".safetensors",), "safetensors", sums=True),
        Format("sharded", (), "sharded", folder=True, sums=True),
        Format("npz", (".npz",), "npz"),
        Format("msgpack", (".msgpack",), "msgpack", nested=True, plain=True),
        Format("orbax", (), "orbax", folder=True, nested=True, sums=True),
    )
}
SUFFIXES = {suffix: row for row in FORMATS.values() for suffix in row.suffixes}

# numpy's names of the types that come from ml_dtypes.
EXTENDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e3m4",
    )
}


def dtype_of(name: str) -> np.dtype:
    """A type by numpy's or ml_dtypes' name; only numbers and booleans.

    Raises:
        ValueError: no such type.
    """
    dtype = EXTENDED.get(name)
    if dtype is None:
        try:
            dtype = np.dtype(name)
        except (TypeError, SyntaxError):
            raise ValueError(f"unknown type {name[:40]!r}") from None
        if not _is_number(dtype):
            raise ValueError(f"type {name[:40]!r} is not a number")
    return dtype


def _is_number(dtype: np.dtype) -> bool:
    """Return whether a type is one of numbers or booleans, without fields."""
    return dtype in EXTENDED.values() or (dtype.kind in "biufc" and not dtype.names and not dtype.shape)


def of(path: str | Path, name: str | None = None) -> Format:
    """The format of an existing or future file: as named, otherwise by its kind, otherwise by its suffix.

    Raises:
        WeightsError: unknown format.
    """
    path = Path(path)
    if name is not None:
        if name not in FORMATS:
            raise WeightsError(f"format: got {name!r}, expected one of {', '.join(FORMATS)}")
        return FORMATS[name]
    if path.name.endswith(INDEX):
        return FORMATS["sharded"]
    if os.path.isdir(path):  # noqa: PTH112 - False for a name that no file can have, where `Path.is_dir` raises
        return FORMATS["sharded" if any(any(path.glob(pattern)) for pattern in (f"*{INDEX}", *WHOLE)) else "orbax"]
    if row := SUFFIXES.get(path.suffix.lower()):
        return row
    expected = " ".join(SUFFIXES)
    got = path.suffix or "(no suffix)"
    raise WeightsError(f"weights {path}: unknown format {got!r}; expected {expected}, or name it with --format")


def read(path: str | Path, name: str | None = None, *, check: bool = True, max_memory: int | None = None) -> Content:
    """Return the content of a file, as it is.

    Args:
        check: compare the numbers with their checksum, which reads all of them.
        max_memory: bytes that reading may take; by default what `ports.weights.files.budget` says.

    Raises:
        WeightsError: the path is not a regular file or a folder, its format is unknown, or the file is damaged, holds
            no tensors, would run code, or asks for more memory than it may take.
    """
    source = Source(path, max_memory)
    row = of(path, name)
    if source.folder and not row.folder:
        raise WeightsError(f"weights {path}: is a folder, expected a file of format {row.name}")
    content = guarded(source.path, row.module, "read", source, *((check,) if row.sums else ()))
    content.source = source
    return content


def write(path: str | Path, content: Content, row: Format, **options: object) -> None:
    """Write a file; the caller makes sure that the file appears whole (`ports.weights.files.atomic`).

    Raises:
        WeightsError: the format cannot hold the content, or an array holds no numbers.
    """
    metadata = {_unicode(name): _unicode(text) for name, text in content.metadata.items()}
    content = replace(content, tree=_portable(content.tree, ""), metadata=metadata)
    importlib.import_module(f"{__name__}.{row.module}").write(Path(path), content, **options)


def _unicode(text: str) -> str:
    """Return a text of metadata with escapes for what is not valid Unicode, which some formats cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _portable(node: Any, name: str) -> Any:
    """Return a tree whose arrays are in this machine's form, because no writer looks at byte order or bits."""
    if isinstance(node, Mapping):
        return {key: _portable(value, f"{name}.{key}" if name else str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_portable(value, f"{name}.{i}") for i, value in enumerate(node)]
    if not is_array(node):
        return node
    if not _is_number(node.dtype):
        raise WeightsError(f"{name}: is of type {node.dtype}, expected numbers")
    if node.dtype == np.bool_:
        return _truths(np.asarray(node))
    return node if node.dtype.isnative else np.asarray(node).astype(node.dtype.newbyteorder("="))


def _truths(array: np.ndarray) -> np.ndarray:
    """Return booleans as bytes 0 and 1: a file may hold other bytes for true, which some readers refuse."""
    return array if array.view(np.uint8).max(initial=0) < 2 else np.asarray(array.view(np.uint8) != 0)


def foreign(row: Format) -> Callable[[Path], list[str]] | None:
    """Return a function that lists the files in a folder that a format does not write; None for single-file formats."""
    return importlib.import_module(f"{__name__}.{row.module}").foreign if row.folder else None


def guarded(path: Path, module: str, function: str, *args: object) -> Any:
    """Call a reader; any error in a file becomes one line."""
    with faults_of(path):
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(*args)


def flat(tree: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterable[tuple[tuple[Any, ...], Any]]:
    """The leaves of a tree with their paths. The keys are text, or also numbers in the state of an optimizer."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value


def nested(leaves: Iterable[tuple[tuple[str, ...], Any]]) -> Tree:
    """The way back.

    Raises:
        WeightsError: a path that ends where another path continues.
    """
    tree: Tree = {}
    for path, value in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise WeightsError(f"{'.'.join(path)}: is within {key}, which is a tensor itself")
        if path[-1] in node:
            raise WeightsError(f"{'.'.join(path)}: is there twice")
        node[path[-1]] = value
    return tree


def arrays(tree: Mapping[str, Any]) -> dict[str, Array]:
    """Return the content of a flat format.

    Raises:
        WeightsError: it holds something other than tensors.
    """
    if other := [f"{name} ({type(v).__name__})" for name, v in tree.items() if not is_array(v)]:
        raise WeightsError(f"{other[0]} is not a tensor, and this format holds only tensors")
    return dict(tree)


def unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """For JSON and msgpack: an object without repeated keys."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {str(key)[:80]!r} is there twice")
        result[key] = value
    return result


def checksum(leaves: Iterable[tuple[str, Array]]) -> str:
    """Return the CRC-32 of names, types, shapes and numbers, in any order."""
    total = 0
    for name, array in sorted(leaves, key=lambda leaf: leaf[0]):
        about = f"{name}\0{array.dtype.name}\0{array.shape}\0"
        total = zlib.crc32(about.encode("utf-8", "surrogatepass"), total)
        for piece in pieces(array):
            total = zlib.crc32(piece, total)
    return f"{total:08x}"


def checked(metadata: dict[str, str], leaves: Iterable[tuple[str, Array]], check: bool) -> dict[str, str]:
    """The metadata without the checksum, which is compared with the leaves.

    Raises:
        ValueError: it is another.
    """
    metadata = dict(metadata)
    expected = metadata.pop(SUM, None)
    if check and expected is not None and checksum(leaves) != expected:
        raise ValueError("the checksum of its tensors is another than was written")
    return metadata
