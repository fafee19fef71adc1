"""Computes the size of a compressed piece without decompressing it into memory.

Libraries decompress first and compare afterwards. Here each piece is examined first: its length must be the expected
one if it is known exactly; otherwise `most` gives an upper bound, which the budget counts.

Source: RFC 8878 (zstd), the READMEs of c-blosc (header of 16 bytes).
"""

from __future__ import annotations

import bz2
import struct
import zlib
from collections.abc import Callable
from typing import Any

from ports.weights.files.source import PIECE

FRAME, SKIPPED = 0xFD2FB528, 0x184D2A50
BLOCK = 1 << 17  # a block becomes no more than this
RAW, REPEATED, RESERVED = 0, 1, 3
WINDOW = 1 << 27  # zstd refuses larger ones


def most(name: object, content: bytes, size: int) -> int:
    """Return the bytes that decompressing a piece may take, at least `size`.

    Args:
        name: the compressor, as the file names it; None if there is none.
        size: the bytes that the piece has to become.

    Raises:
        ValueError: it decompresses to another number of bytes, is damaged, or its compressor is unknown.
    """
    if not isinstance(name, str | None) or name not in READERS:  # a file may name a list
        raise ValueError(f"an unknown compressor {str(name)[:40]!r}")
    return max(READERS[name](content, size), size)


def _exact(got: int, size: int) -> int:
    if got != size:
        raise ValueError(f"a piece of {got:,} bytes, expected {size:,}")
    return got


def _plain(content: bytes, size: int) -> int:
    return _exact(len(content), size)


def _blosc(content: bytes, size: int) -> int:
    if len(content) < 16:
        raise ValueError("a piece that is too short for blosc")
    inside, _, whole = struct.unpack_from("<3I", content, 4)
    _exact(whole, len(content))
    return _exact(inside, size)


def _streamed(start: Callable[[], Any]) -> Callable[[bytes, int], int]:
    def read(content: bytes, size: int) -> int:
        total, stream, waiting = 0, start(), content
        while not stream.eof and total <= size:
            piece = stream.decompress(waiting, PIECE)
            waiting = getattr(stream, "unconsumed_tail", b"")
            total += len(piece)
            if not piece and not waiting:
                break
        if not stream.eof or stream.unused_data:
            raise ValueError(f"a piece that is cut off, or becomes more than {size:,} bytes")
        return _exact(total, size)

    return read


def _zstd(content: bytes, size: int) -> int:
    total = at = 0
    while at < len(content):
        (magic,) = struct.unpack_from("<I", _part(content, at, 4))
        if magic & 0xFFFFFFF0 == SKIPPED:
            at += 8 + struct.unpack("<I", _part(content, at + 4, 4))[0]
        elif magic == FRAME:
            at, more = _frame(content, at + 4)
            total += more
        else:
            raise ValueError("a piece that is not zstd")
    if at != len(content):
        raise ValueError("a piece of zstd that is cut off")
    return total


def _frame(content: bytes, at: int) -> tuple[int, int]:
    """Return where a frame ends, and the bytes that it may take."""
    about = _part(content, at, 1)[0]
    single, checksum = about >> 5 & 1, about >> 2 & 1
    sizes = (0 if single else 1), (0, 1, 2, 4)[about & 3], (single, 2, 4, 8)[about >> 6]
    head = _part(content, at + 1, sum(sizes))
    at += 1 + sum(sizes)
    window = int.from_bytes(head[-sizes[2] :], "little") + (256 if sizes[2] == 2 else 0)  # the size of its content
    if not single:
        base = 1 << (10 + (head[0] >> 3))
        window = base + (base >> 3) * (head[0] & 7)
    if window > WINDOW and not single:
        raise ValueError(f"a frame of zstd with a window of {window:,} bytes")
    total, last = (0 if single else window), False
    while not last:
        block = int.from_bytes(_part(content, at, 3), "little")
        last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
        if kind == RESERVED or length > BLOCK:
            raise ValueError("a damaged block of zstd")
        total += length if kind in (RAW, REPEATED) else min(BLOCK, window)
        at += 3 + (1 if kind == REPEATED else length)
    return at + 4 * checksum, total


def _part(content: bytes, at: int, count: int) -> bytes:
    part = content[at : at + count]
    if len(part) != count:
        raise ValueError("a piece of zstd that is cut off")
    return part


def _inflate() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)


READERS: dict[str | None, Callable[[bytes, int], int]] = {
    None: _plain,
    "blosc": _blosc,
    "bz2": _streamed(bz2.BZ2Decompressor),
    "gzip": _streamed(_inflate),
    "zlib": _streamed(_inflate),
    "zstd": _zstd,
}
