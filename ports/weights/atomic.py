"""Outputs that appear whole or not at all: written in a hidden folder beside their place, flushed, and renamed.

The hidden folder is called `.NAME.….partial` and holds a lock file, the new output (`new`) and for a moment the old one
(`old`). A process that is killed leaves it behind; the next run in that folder finds that nobody has the lock, puts an
old output back that has lost its place, and removes the rest. The final step is one system call where the system has
it: a rename that refuses to replace, or one that exchanges two. Elsewhere the old output is moved aside and comes back
where the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ports.weights import destination
from ports.weights.hub import WeightsError

try:
    import fcntl
except ImportError:  # Windows: what is left behind stays
    fcntl = None

NOREPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
AT_FDCWD = -100
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
LOCK, NEW, OLD = "lock", "new", "old"
BOX = re.compile(r"\..*\.[0-9a-f]{16}\.partial", re.DOTALL)
LONGEST = 100


@contextmanager
def publish(
    path: str | Path, *, force: bool = False, foreign: destination.Foreign | None = None, name: str = "NAME"
) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder at; what is there at the end becomes `path`.

    Args:
        force, foreign, name: as in `destination.check`.

    Raises:
        WeightsError: an output that exists and may not be replaced, no such folder, no permission, a full disk.
    """
    path = Path(path)
    destination.check(path, force=force, foreign=foreign, name=name)
    folder = path.absolute().parent
    clean(folder)
    try:
        with _box(path.absolute()) as box:
            new = box / NEW
            yield new
            sync(new)
            destination.check(path, force=force, foreign=foreign, name=name)  # others may have come meanwhile
            _move(new, path.absolute(), box / OLD, force)
            _sync_one(folder)
    except OSError as error:
        raise WeightsError(f"output {path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _box(path: Path) -> Iterator[Path]:
    """The hidden folder of one output, locked as long as it is needed."""
    box, lock = _locked(path)
    with lock:
        try:
            lock.write(os.fsencode(path.name))
            lock.flush()
            yield box
        finally:
            # An old output is only here where it could not be put back; the next run tries again.
            if not os.path.lexists(box / OLD) or os.path.lexists(path):
                _remove(box)


def _locked(path: Path) -> tuple[Path, IO[bytes]]:
    """Make the hidden folder and take its lock; begin again where somebody who cleans was quicker."""
    while True:
        box = path.parent / f".{path.name[:LONGEST]}.{secrets.token_hex(8)}.partial"
        box.mkdir(0o700)
        try:
            lock = (box / LOCK).open("xb")
        except FileNotFoundError:
            continue
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: nobody cleans there
                fcntl.flock(lock, fcntl.LOCK_EX)
        if (box / LOCK).exists():
            return box, lock
        lock.close()


def clean(folder: Path) -> None:
    """Remove what processes that were killed left in a folder; put back an old output that has lost its place."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # whoever may not do this writes nothing here either
        for box in [entry for entry in folder.iterdir() if BOX.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _clean(box)


def _clean(box: Path) -> None:
    if box.is_symlink() or not box.is_dir():
        return
    try:
        lock = (box / LOCK).open("rb")
    except FileNotFoundError:
        box.rmdir()  # one that is not empty is not ours
        return
    with lock:
        if not _free(lock):
            return
        path = box.parent / os.fsdecode(lock.read())
        if os.path.lexists(box / OLD) and path.name and path.parent == box.parent and not os.path.lexists(path):
            (box / OLD).rename(path)
        _remove(box)


def _remove(box: Path) -> None:
    """Remove the lock last: by it the next run knows what is left of this folder."""
    with contextlib.suppress(OSError):
        for entry in [entry for entry in box.iterdir() if entry.name != LOCK]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (box / LOCK).unlink()
        box.rmdir()


def _free(lock: IO[bytes]) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its owner lives, or the file system has no locks
        return False
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder and all in it, to the disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            _sync_one(Path(folder) / name)
        _sync_one(Path(folder))
    if path.is_file():
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(new: Path, path: Path, old: Path, force: bool) -> None:
    """Put the new output in its place; `old` is where a replaced folder goes."""
    if not force:
        if not _renameat2(new, path, NOREPLACE):
            if os.path.lexists(path):
                raise OSError(errno.EEXIST, "another process made it meanwhile")
            new.rename(path)
    elif not (path.is_dir() or new.is_dir()):
        new.replace(path)
    elif not os.path.lexists(path):
        new.rename(path)
    elif not _renameat2(new, path, EXCHANGE):
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Call Linux's atomic rename with a flag; return False where the system or the file system lacks it."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))
