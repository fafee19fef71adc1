"""The source of weights: a regular file or a folder, opened once, and unchanged from the first byte to the last.

A file may be truncated, replaced or rewritten while it is read. Each file is opened once, so a replaced file is still
read as it was. Reads go by position and not through a memory map, so a truncated file is an error and not a SIGBUS.
`Source.unchanged` compares size and times at the end, so a rewritten file is refused.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from ports.weights.files.budget import Budget
from ports.weights.form.torch_form import WeightsError

PIECE = 1 << 22
KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
CHANGED = "changed while it was read; start again when nothing writes to it"
Identity = tuple[int, ...]


def kind_of(mode: int) -> str:
    """Return the kind of a path, for a message."""
    return next((text for test, text in KINDS if test(mode)), "a folder" if stat.S_ISDIR(mode) else "a file")


def status(path: Path) -> os.stat_result:
    """Return the status of a file or folder that weights are read from.

    Raises:
        WeightsError: it does not exist, its name is invalid, or it is neither a regular file nor a folder.
    """
    try:
        found = path.stat()
    except PermissionError:
        raise WeightsError(f"weights {path}: no permission to read it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"weights {path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL; a loop of links
        raise WeightsError(f"weights {path}: {getattr(error, 'strerror', None) or error}") from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise WeightsError(f"weights {path}: is {kind_of(found.st_mode)}, expected a regular file or a folder")
    return found


def identity(found: os.stat_result) -> Identity:
    """Return the attributes that change when somebody writes to a file, or replaces it."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class OpenFile:
    """A regular file, opened once and read by position."""

    def __init__(self, path: Path) -> None:
        status(path)
        # Without O_NONBLOCK, opening a named pipe that was put there meanwhile would block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise WeightsError(f"weights {path}: is {kind_of(found.st_mode)}, expected a regular file")
        self.path, self.size = path, found.st_size
        self._identity, self._descriptor = identity(found), descriptor
        self._file, self._lock = io.FileIO(descriptor, closefd=False), threading.Lock()

    def read_into(self, buffer: memoryview, at: int) -> None:
        """Fill a buffer from a position of the file.

        Raises:
            WeightsError: the file ends before the buffer is full.
        """
        while len(buffer):
            with self._lock:
                self._file.seek(at)
                count = self._file.readinto(buffer[:PIECE]) or 0
            if count == 0:
                raise WeightsError(f"weights {self.path}: {CHANGED} (it ends at byte {at:,} of {self.size:,})")
            buffer, at = buffer[count:], at + count

    def read(self, at: int, count: int) -> bytearray:
        """Return `count` bytes from a position of the file."""
        content = bytearray(count)
        self.read_into(memoryview(content), at)
        return content

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[bytearray]:
        """Return the bytes of a range, some megabytes at a time."""
        end = self.size if end is None else end
        for at in range(begin, end, PIECE):
            yield self.read(at, min(PIECE, end - at))

    def stream(self) -> Stream:
        """Return a file object with its own position, for libraries that take one."""
        return Stream(_Raw(self))

    def sha256(self) -> str:
        """Return the digest of the file's bytes."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def unchanged(self) -> bool:
        """Return whether the file is as it was when it was opened.

        A file that was replaced or removed counts as unchanged, because the opened file can still be read completely.
        """
        now = identity(os.fstat(self._descriptor))
        return now[:4] == self._identity[:4]


class _Raw(io.RawIOBase):
    """An `OpenFile` as a raw stream; it ends where the file ended when it was opened."""

    def __init__(self, file: OpenFile) -> None:
        self._source, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = max(0, min(len(buffer), self._source.size - self._at))
        self._source.read_into(memoryview(buffer)[:count], self._at)
        self._at += count
        return count


class Stream(io.BufferedReader):
    """A buffered reader that is never asked for more bytes than the file has left.

    Python allocates the requested size before it reads: five bytes of a pickle took 2.5 GB.
    """

    def __init__(self, raw: _Raw) -> None:
        super().__init__(raw)
        self._size = raw._source.size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


class Source:
    """A file or a folder that weights are read from.

    Attributes:
        path: as it was given.
        folder: whether it is a folder.
        budget: the memory that reading it may take.
        notes: what its reader found that a user should know.
    """

    def __init__(self, path: str | Path, max_memory: int | None = None) -> None:
        self.path = Path(path)
        self.folder = stat.S_ISDIR(status(self.path).st_mode)
        self.budget = Budget(self.path, max_memory)
        self.notes: list[str] = []
        self._files: dict[Path, OpenFile] = {}
        self._listing: dict[Path, Identity] | None = None
        if not self.folder:
            self.open(self.path)

    @property
    def file(self) -> OpenFile:
        """The file itself, if the source is a file."""
        return self.open(self.path)

    def part(self, path: Path) -> Source:
        """Return one file of a folder as a source of its own, with the same budget."""
        part = copy.copy(self)  # the tables of files, notes and memory are shared
        part.path, part.folder = path, False
        return part

    def open(self, path: Path) -> OpenFile:
        """Return a file of the source; it is opened once, and counts towards the memory that reading may take."""
        if path not in self._files:
            self._files[path] = OpenFile(path)
            self.budget.grow(self._files[path].size)
        return self._files[path]

    def listing(self) -> dict[Path, Identity]:
        """Return all files of a folder that a library reads by itself, and remember them for `unchanged`.

        Raises:
            WeightsError: an entry that is neither a file nor a folder, or a link that leaves the folder.
        """
        if self._listing is None:
            self._listing = _listing(self.path)
            self.budget.grow(sum(size for _, _, size, *_ in self._listing.values()))
        return self._listing

    def paths(self) -> list[Path]:
        """Return the files that were read."""
        return [*dict.fromkeys((*self._files, *(self._listing or ())))]

    def sha256(self) -> str:
        """Return the digest of the source: a file's own digest, or one of several files' names and digests."""
        if not self.folder and len(self._files) == 1:
            return self.file.sha256()
        base = self.path if self.folder else self.path.parent
        files = {path.relative_to(base).as_posix(): path for path in self.paths()}
        lines = "".join(f"{self.open(path).sha256()}  {name}\n" for name, path in sorted(files.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def unchanged(self) -> None:
        """Compare sizes and times with those at the beginning.

        Raises:
            WeightsError: a file of the source was written to meanwhile.
        """
        for path, file in self._files.items():
            if not file.unchanged():
                raise WeightsError(f"weights {path}: {CHANGED}")
        if self._listing is not None and _listing(self.path) != self._listing:
            raise WeightsError(f"weights {self.path}: {CHANGED}")


def _listing(folder: Path) -> dict[Path, Identity]:
    real, found = Path(os.path.realpath(folder)), {}
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(at) / name
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real):
                raise WeightsError(f"weights {path}: is a link that leaves {folder}; put the file itself there")
            entry = status(path)
            if stat.S_ISREG(entry.st_mode):
                found[path] = identity(entry)
    return found
