"""Zip archives, read by one parser that decides what is loaded: PyTorch's files and NumPy's `.npz`.

A zip describes its content several times, and readers trust different descriptions: with two directories, Python's
`zipfile` and PyTorch read different files. Here all descriptions must agree: one archive from the first byte to the
last, members that follow one another without a gap, and headers that say the same as the directory. Sizes are known
before anything is inflated, and a member is compared with its size while it is inflated.

Source: PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ports.weights.files.source import PIECE, OpenFile, Source

END, END64, LOCATOR = b"PK\5\6", b"PK\6\6", b"PK\6\7"
ENTRY, HEADER, DESCRIPTOR = b"PK\1\2", b"PK\3\4", b"PK\7\x08"
LARGEST_COMMENT = 65535
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
ENCODED, DESCRIBED = 0x800, 0x8  # the name is UTF-8; sizes follow the member
FLAGS = ENCODED | DESCRIBED | 0x6  # and how hard the compressor tried
OBJECTS = 16  # bytes of objects that a byte of the directory can become
ZIP64 = 1


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        at: where its header begins.
        begin: where its content begins.
        stored: bytes in the archive.
        size: bytes when it is inflated.
    """

    name: str
    raw: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    at: int
    begin: int = 0


class Archive:
    """A whole zip archive that is unambiguous.

    Raises:
        ValueError: its parts do not agree, or it uses what neither PyTorch nor NumPy writes.
        WeightsError: its directory takes more memory than the file may take.
    """

    def __init__(self, source: Source) -> None:
        self._file = source.file
        count, begin, end, self.comment = _end(self._file)
        source.budget.take(OBJECTS * (end - begin), "its directory")
        entries = _entries(bytes(self._file.read(begin, end - begin)), count)
        self.members = _placed(self._file, entries, begin)

    def pieces(self, member: Member) -> Iterator[bytes | bytearray]:
        """Return the content of a member, some megabytes at a time.

        Raises:
            ValueError: it is not as long as the directory says, or has another checksum.
        """
        crc, left = 0, member.size
        for piece in self._inflated(member):
            left -= len(piece)
            if left < 0:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
        if left:
            raise ValueError(f"{member.name[:80]!r} is not as long as the archive says ({member.size:,} bytes)")
        if member.crc not in (0, crc):  # PyTorch has a setting to write no checksums
            raise ValueError(f"{member.name[:80]!r} has another checksum than was written")

    def read(self, member: Member) -> bytearray:
        """Return the whole content of a member; the caller has counted its size."""
        content, at = bytearray(member.size), 0
        for piece in self.pieces(member):
            content[at : at + len(piece)] = piece
            at += len(piece)
        return content

    def check(self, member: Member) -> None:
        """Compare a member's content with its checksum."""
        for _ in self.pieces(member):
            pass

    def _inflated(self, member: Member) -> Iterator[bytes | bytearray]:
        raw = self._file.pieces(member.begin, member.begin + member.stored)
        if member.method == STORED:
            yield from raw
            return
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        for piece in raw:
            waiting: bytes | bytearray = piece
            while waiting and not inflate.eof:
                yield inflate.decompress(waiting, PIECE)
                waiting = inflate.unconsumed_tail
            if inflate.eof:
                break
        while inflated := inflate.decompress(b"", PIECE):
            yield inflated
        if not inflate.eof or inflate.unused_data or next(raw, None):
            raise ValueError(f"{member.name[:80]!r}: its compressed data do not end where the archive says")


def is_zip(file: OpenFile) -> bool:
    """Return whether a file begins as a zip archive does."""
    return file.read(0, min(4, file.size)) in (HEADER, END)


def _end(file: OpenFile) -> tuple[int, int, int, bytes]:
    """Return the number of members, where the directory begins and ends, and the comment."""
    length = min(file.size, 22 + LARGEST_COMMENT)
    tail = bytes(file.read(file.size - length, length))
    # Some readers look for the last end record, others for one whose comment ends the file: both must find the same
    # one.
    found = [at for at in _all(tail, END) if tail[at + 20 : at + 22] == struct.pack("<H", max(len(tail) - at - 22, 0))]
    if found != [tail.rfind(END)]:
        raise ValueError("the end of the zip archive is missing, there is more than one, or bytes follow it")
    at = found[0]
    disk, first, here, count, size, begin = struct.unpack_from("<4H2I", tail, at + 4)
    end, numbers = file.size - len(tail) + at, (disk, first, here, count, size, begin)
    limits = (MAX16, MAX16, MAX16, MAX16, MAX32, MAX32)
    if end >= 20 and file.read(end - 20, 4) == LOCATOR:
        end, wide = _end64(file, end - 20)
        if any(narrow not in (most, n) for narrow, n, most in zip(numbers, wide, limits, strict=True)):
            raise ValueError("the two ends of the zip archive differ")
        numbers = wide
    disk, first, here, count, size, begin = numbers
    if disk or first or here != count:
        raise ValueError("is one part of a zip archive in several files")
    if begin + size != end:
        raise ValueError(
            f"the directory of the zip archive takes bytes {begin:,} to {begin + size:,}, expected {end:,}"
        )
    return count, begin, end, tail[at + 22 :]


def _all(text: bytes, part: bytes) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _end64(file: OpenFile, at: int) -> tuple[int, tuple[int, ...]]:
    """Return where the zip64 end of an archive begins, and its numbers in the form of the plain end."""
    disk, begin, disks = struct.unpack("<IQI", file.read(at + 4, 16))
    if begin != at - 56 or begin < 0 or file.read(begin, 4) != END64 or disk or disks > 1:
        raise ValueError("the zip64 locator does not point to the end before it")
    length, _, _, disk, first, here, count, size, start = struct.unpack("<Q2H2I4Q", file.read(begin + 4, 52))
    if length != 44:
        raise ValueError(f"the zip64 end has {length:,} bytes, expected 44")
    return begin, (disk, first, here, count, size, start)


def _entries(text: bytes, count: int) -> list[Member]:
    """Return the members that the directory lists; the positions of their content are not known yet."""
    at, entries = 0, []
    for _ in range(count):
        if text[at : at + 4] != ENTRY or at + 46 > len(text):
            raise ValueError(f"the directory of the zip archive lists {len(entries):,} members, expected {count:,}")
        flags, method, crc, stored, size, name, extra, comment, disk, place = struct.unpack_from(
            "<2H4x3I4H6xI", text, at + 8
        )
        begin = at + 46
        at = begin + name + extra + comment
        if at > len(text):
            raise ValueError("an entry of the directory goes beyond its end")
        raw = text[begin : begin + name]
        wide = _wide(text[begin + name : begin + name + extra], [size, stored, place])
        size, stored, place = wide
        if disk not in (0, MAX16):
            raise ValueError("is one part of a zip archive in several files")
        entries.append(_member(raw, flags, method, crc, stored, size, place))
    if at != len(text):
        raise ValueError("the directory of the zip archive is longer than its members")
    return entries


def _member(raw: bytes, flags: int, method: int, crc: int, stored: int, size: int, at: int) -> Member:
    name = raw.decode("utf-8" if flags & ENCODED else "cp437")
    if "\0" in name:
        raise ValueError(f"{name[:80]!r}: a name with a zero byte")
    if flags & ~FLAGS:
        raise ValueError(f"{name[:80]!r} is encrypted, or uses zip features that no writer of weights uses")
    if method not in (STORED, DEFLATED):
        raise ValueError(f"{name[:80]!r}: compression {method}, expected stored (0) or deflated (8)")
    if method == STORED and stored != size:
        raise ValueError(f"{name[:80]!r} declares {stored:,} bytes and a size of {size:,}; it is not compressed")
    return Member(name, raw, flags, method, crc, stored, size, at)


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Return sizes and positions with 64 bits if 32 bits are too few."""
    needed = [i for i, number in enumerate(numbers) if number == MAX32]
    found = [body for kind, body in _extras(extra) if kind == ZIP64]
    if not needed:
        return numbers
    if len(found) != 1 or len(found[0]) < 8 * len(needed):
        raise ValueError("a member of more than 4 GB without its size")
    for i, (number,) in zip(needed, struct.iter_unpack("<Q", found[0][: 8 * len(needed)]), strict=True):
        numbers[i] = number
    return numbers


def _extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4 + length
        if at > len(extra):
            raise ValueError("an extra field of a zip header goes beyond its end")
        yield kind, extra[at - length : at]


def _placed(file: OpenFile, entries: list[Member], end: int) -> dict[str, Member]:
    """Return the members by name, in the order of the directory; they fill the file up to the directory."""
    members = {entry.name: entry for entry in entries}
    if len(members) != len(entries):
        seen: set[str] = set()
        twice = next(entry.name for entry in entries if entry.name in seen or seen.add(entry.name))
        raise ValueError(f"{twice[:80]!r} stands there twice")
    order = sorted(entries, key=lambda entry: entry.at)
    if (order[0].at if order else end) != 0:
        raise ValueError("bytes before the zip archive")
    ends = [*(entry.at for entry in order[1:]), end]
    for member, following in zip(order, ends, strict=False):
        members[member.name] = _located(file, member, following)
    return members


def _located(file: OpenFile, member: Member, end: int) -> Member:
    """Return a member with the place of its content, after its header was compared with the directory."""
    name = repr(member.name[:80])
    if member.at + 30 > end:
        raise ValueError(f"{name}: its header lies outside of the archive, or within another member")
    head = file.read(member.at, 30)
    if head[:4] != HEADER:
        raise ValueError(f"{name}: no header where the directory says")
    flags, method, crc, stored, size, length, extra = struct.unpack_from("<2H4x3I2H", head, 6)
    begin = member.at + 30 + length + extra
    if begin + member.stored > end:
        raise ValueError(f"{name} declares {member.stored:,} bytes, the archive has {max(end - begin, 0):,} for it")
    own = bytes(file.read(member.at + 30, length + extra))
    size, stored = _wide(own[length:], [size, stored])
    # Python's zipfile does not mark ASCII names as UTF-8, PyTorch marks every name; both mean the same.
    alike = ~ENCODED if member.raw.isascii() else -1
    if (own[:length], flags & alike, method) != (member.raw, member.flags & alike, member.method):
        raise ValueError(f"{name}: its header and the directory differ")
    expected = (member.crc, member.stored, member.size)
    if (crc, stored, size) != expected and not (flags & DESCRIBED and not (crc or stored or size)):
        raise ValueError(f"{name}: its header and the directory differ")
    if not _described(file, member, begin + member.stored, end):
        raise ValueError(f"{name}: {end - begin - member.stored:,} bytes follow that belong to no member")
    return replace(member, begin=begin)


def _described(file: OpenFile, member: Member, at: int, end: int) -> bool:
    """Return whether there is nothing between two members, or only the description of the first one."""
    if at == end:
        return True
    if not member.flags & DESCRIBED or end - at > 24:
        return False
    found = bytes(file.read(at, end - at))
    numbers = member.crc, member.stored, member.size
    kinds = [struct.pack(kind, *numbers) for kind in ("<IQQ", "<III") if kind == "<IQQ" or max(numbers) <= MAX32]
    return found in [mark + text for mark in (b"", DESCRIPTOR) for text in kinds]
