"""OCDBT, the database in which Orbax keeps arrays: tensorstore opens it, after its possible memory was counted.

The database is a tree of compressed nodes in its files. tensorstore decompresses each node on the way to a key. This
module counts the decompressed size of all nodes before the database is opened. Only keys that the checkpoint names are
looked up, because a small tree can list more keys than there are atoms.

Source: tensorstore's description of the format (`kvstore/ocdbt`): a magic number, the length, the version, the kind of
compression, the content, and a checksum of 4 bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from ports.weights.files.formats.compressed import most
from ports.weights.files.source import OpenFile, Source
from ports.weights.form.torch_form import WeightsError

MANIFEST = "manifest.ocdbt"
MAGIC = re.compile(rb"\x0c\xdb(\x3a\x2a|\x20\xde|\x12\x34)")  # manifest, key node, version node
PLAIN, ZSTD = 0, 1
HEAD, CHECKSUM = 14, 4  # bytes before and after the content
CACHE = 1 << 26


def is_unicode(text: str) -> bool:
    """Return whether a name is valid Unicode, which Orbax's libraries need; a file's name may be any bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def opened(source: Source) -> Callable[[str], bytes | None]:
    """Return a function that gives the value of a key, or None if there is no such key.

    Raises:
        WeightsError: its nodes take more memory than the checkpoint may take.
    """
    import tensorstore as ts

    if not is_unicode(str(source.path.absolute())):
        raise WeightsError(
            f"weights {source.path}: is a database of Orbax in a place whose name is not valid Unicode, where its "
            "library cannot read; rename the folder"
        )
    for path in source.listing():
        for count in _nodes(OpenFile(path)):
            source.budget.take(count, "its nodes")
    context = ts.Context({"data_copy_concurrency": {"limit": 1}, "cache_pool": {"total_bytes_limit": CACHE}})
    base = {"driver": "file", "path": f"{Path(source.path).absolute()}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()

    def get(key: str) -> bytes | None:
        found = store.read(key.encode("utf-8", "surrogatepass")).result()
        return bytes(found.value) if found.state == "value" else None

    return get


def _nodes(file: OpenFile) -> Iterator[int]:
    """Return the possible size of each node in a file.

    Raises:
        ValueError: nodes overlap, which tensorstore never writes.
    """
    total, tail, begin = 0, b"", 0
    for piece in file.pieces():
        text = tail + piece
        for found in MAGIC.finditer(text):
            at = begin - len(tail) + found.start()
            if at + HEAD > file.size:
                continue
            length, _, kind = struct.unpack("<Q2B", file.read(at + 4, HEAD - 4))
            if kind not in (PLAIN, ZSTD) or not HEAD + CHECKSUM <= length <= file.size - at:
                continue  # numbers that look like a node
            total += length
            if total > file.size:
                raise ValueError("nodes of its database overlap")
            yield _most(file, at + HEAD, length - HEAD - CHECKSUM, kind)
        begin, tail = begin + len(piece), bytes(text[-3:])


def _most(file: OpenFile, at: int, count: int, kind: int) -> int:
    if kind == PLAIN:
        return count
    try:
        return most("zstd", bytes(file.read(at, count)), 0)
    except ValueError:  # numbers that look like a node, or a node that tensorstore will refuse
        return 0
