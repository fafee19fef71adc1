"""Flax's msgpack: a tree of maps; an array is an extension of shape, type and bytes.

Source: `flax/serialization.py` (extension 1 an array, 2 a complex number, 3 a numpy scalar; arrays above 2**30 bytes
are maps of chunks). Read and written here without Flax, so that neither JAX nor a network is needed. There is no room
for metadata: a separate key would be taken for a variable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ports.weights.files.formats import Content, Tree
from ports.weights.files.formats.msgpacked import ARRAY, CHUNKED, Decoder
from ports.weights.files.source import Source
from ports.weights.form.lazy import is_array
from ports.weights.form.torch_form import WeightsError

CHUNK = 2**30


def read(source: Source) -> Content:
    with source.file.stream() as stream:
        tree = Decoder(source, stream).whole()
    if not isinstance(tree, dict) or not tree:
        raise WeightsError(f"weights {source.path}: got {type(tree).__name__}, expected a tree of tensors")
    return Content(tree)


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
                raise WeightsError(f"{key[:80]!r}: is not valid Unicode, which msgpack cannot hold") from None
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
