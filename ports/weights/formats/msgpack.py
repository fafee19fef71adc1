"""Flax's msgpack: a tree of maps; an array is an extension of shape, type and bytes.

Source: `flax/serialization.py` (extension 1 an array, 2 a complex number, 3 a numpy scalar; arrays above 2**30 bytes
are maps of chunks). Read and written here without Flax, so that neither JAX nor a network is needed. There is no room
for metadata: a key of its own would be taken for a variable.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ports.weights.formats import Content, Tree, dtype_of, unique
from ports.weights.hub import WeightsError
from ports.weights.lazy import is_array
from ports.weights.source import Source

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNK = 2**30
CHUNKED = "__msgpack_chunked_array__"


def read(source: Source) -> Content:
    path, file = source.path, source.file
    tree = msgpack.unpackb(
        bytes(file.read(0, file.size)), ext_hook=_extension, object_pairs_hook=unique, raw=False, strict_map_key=False
    )
    if not isinstance(tree, dict) or not tree:
        raise WeightsError(f"weights {path}: got {type(tree).__name__}, expected a tree of tensors")
    return Content(_tree(tree))


def _extension(code: int, data: bytes) -> Any:
    if code in (ARRAY, SCALAR):
        parts = msgpack.unpackb(data, raw=False)
        if not isinstance(parts, list | tuple) or len(parts) != 3:
            raise ValueError("an array is not shape, type and bytes")
        shape, name, content = parts
        if not isinstance(shape, list | tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"shape {str(shape)[:60]} is no list of sizes")
        dtype = dtype_of(name if isinstance(name, str) else "no text")
        if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
            got = len(content) if isinstance(content, bytes) else 0
            raise ValueError(f"an array {dtype} {tuple(shape)} has {got:,} bytes")
        return np.frombuffer(content, dtype).reshape(shape)
    if code == COMPLEX:
        return complex(*msgpack.unpackb(data))
    raise ValueError(f"unknown extension {code}")


def _tree(node: Any) -> Any:
    """Maps with text for keys; numbers of a list become keys, and chunks one array."""
    if isinstance(node, list | tuple):
        return {str(i): _tree(value) for i, value in enumerate(node)}
    if not isinstance(node, dict):
        return node
    if CHUNKED in node:
        shape = tuple(node["shape"][str(i)] for i in range(len(node["shape"])))
        chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
        return np.concatenate(chunks).reshape(shape)
    return unique((str(key), _tree(value)) for key, value in node.items())


def write(path: Path, content: Content) -> None:
    packer = msgpack.Packer(use_bin_type=True)
    with path.open("wb") as file:
        _put(file, packer, content.tree)


def _put(file: Any, packer: Any, node: Any) -> None:
    if isinstance(node, dict):
        file.write(packer.pack_map_header(len(node)))
        for key, value in node.items():
            try:
                file.write(packer.pack(key))
            except UnicodeEncodeError:
                raise WeightsError(f"{key[:80]!r}: is no valid Unicode, which msgpack cannot hold") from None
            _put(file, packer, value)
    elif not is_array(node):
        file.write(packer.pack(node))
    elif node.nbytes > CHUNK:
        _put(file, packer, _chunks(np.asarray(node)))
    else:
        node = np.asarray(node)
        file.write(packer.pack(msgpack.ExtType(ARRAY, msgpack.packb((node.shape, node.dtype.name, node.tobytes())))))


def _chunks(array: np.ndarray) -> Tree:
    step = max(1, CHUNK // array.dtype.itemsize)
    line = array.reshape(-1)
    chunks = {str(i): line[at : at + step] for i, at in enumerate(range(0, line.size, step))}
    return {CHUNKED: True, "shape": {str(i): n for i, n in enumerate(array.shape)}, "chunks": chunks}
