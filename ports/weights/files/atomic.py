"""Outputs that appear whole or not at all: written in a hidden folder next to their place, flushed, and renamed.

The hidden folder is called `.NAME.….partial`. It holds a lock file, the new output (`new`) and, for a moment, the old
one (`old/NAME`). A killed process leaves it behind. The next run in the same folder finds that nobody holds the lock,
restores an old output that has lost its place, and removes the rest. A lock may not show processes of other machines,
so the folder's name has the machine that made it, and the time of that machine's start. Leftovers stay if they are from
before a restart, from another machine, or on a file system without locks.

The final step is one system call where the system has it: a rename that refuses to replace, or one that exchanges two.
On other systems the old output is moved aside, and comes back if the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ports.weights.files import destination
from ports.weights.form.torch_form import WeightsError

try:
    import fcntl
except ImportError:  # Windows: leftovers stay
    fcntl = None

NOREPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
AT_FDCWD = -100
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
LOCK, NEW, OLD = "lock", "new", "old"
BOX = re.compile(r"\..*\.([0-9a-f]{8})[0-9a-f]{8}\.partial", re.DOTALL)
LONGEST = 100  # bytes of the output's name in that of the hidden folder
BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def publish(
    path: str | Path, *, force: bool = False, foreign: destination.Foreign | None = None, name: str = "NAME"
) -> Iterator[Path]:
    """Give a temporary path for a file or a folder; whatever is there at the end becomes `path`.

    Args:
        force, foreign, name: as in `destination.check`.

    Raises:
        WeightsError: an output that exists and may not be replaced, no such folder, no permission, a full disk.
    """
    path = Path(path)
    try:
        clean(path.parent)  # clean up first: this may bring an old output back
        destination.check(path, force=force, foreign=foreign, name=name)
        folder = path.absolute().parent
        with _box(path.absolute()) as box:
            new = box / NEW
            yield new
            sync(new)
            destination.check(path, force=force, foreign=foreign, name=name)  # other files may have appeared meanwhile
            _move(new, path.absolute(), box / OLD, force)
            _sync_one(folder)
    except OSError as error:
        raise WeightsError(f"output {path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _box(path: Path) -> Iterator[Path]:
    """Give the hidden folder of one output, locked as long as it is needed."""
    box, lock = _locked(path)
    with lock:
        try:
            yield box
        finally:
            _settle(box)


def _locked(path: Path) -> tuple[Path, IO[bytes]]:
    """Make the hidden folder and take its lock; begin again if another process removed it first."""
    name = os.fsencode(path.name)[:LONGEST].decode("utf-8", "ignore")
    while True:
        box = path.parent / f".{name}.{machine()}{secrets.token_hex(4)}.partial"
        box.mkdir(0o700)
        try:
            lock = (box / LOCK).open("xb")
        except FileNotFoundError:
            continue
        except OSError:
            box.rmdir()
            raise
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: do not clean up there
                fcntl.flock(lock, fcntl.LOCK_EX)
        if (box / LOCK).exists():
            return box, lock
        lock.close()


@functools.cache
def machine() -> str:
    """Return eight digits for this machine since its start; locks show only processes with the same digits."""
    try:
        text = BOOT.read_text()
    except OSError:  # not Linux
        import psutil

        text = f"{socket.gethostname()} {int(psutil.boot_time())}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def clean(folder: Path) -> None:
    """Remove leftovers of killed processes in a folder; restore an old output that has lost its place."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # without this permission the process cannot write here either
        for entry in list(folder.iterdir()):
            match = BOX.fullmatch(entry.name)
            if match is not None and match[1] == machine():
                with contextlib.suppress(OSError):
                    _clean(entry)


def _clean(box: Path) -> None:
    if box.is_symlink() or not box.is_dir() or box.stat().st_uid != os.geteuid():
        return
    try:
        lock = (box / LOCK).open("rb")
    except FileNotFoundError:
        box.rmdir()  # a folder that is not empty is not ours
        return
    with lock:
        if _free(lock):
            _settle(box)


def _settle(box: Path) -> None:
    """Restore an old output that has lost its place, and remove the rest; leave everything if that fails."""
    with contextlib.suppress(OSError):
        for old in list((box / OLD).iterdir()) if (box / OLD).is_dir() else ():
            if not os.path.lexists(box.parent / old.name):
                old.rename(box.parent / old.name)
        _remove(box)


def _remove(box: Path) -> None:
    """Remove the lock last: it tells the next run that this folder is a leftover."""
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
    """Flush a file, or a folder and its contents, to the disk."""
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
    """Put the new output in its place; `old` is the folder where a replaced one waits."""
    if not force:
        if not _renameat2(new, path, NOREPLACE):
            _place(new, path)
    elif not (path.is_dir() or new.is_dir()):
        new.replace(path)
    elif not os.path.lexists(path):
        new.rename(path)
    elif not _renameat2(new, path, EXCHANGE):
        _swap(new, path, old)


def _place(new: Path, path: Path) -> None:
    """Put the new output into an empty place, with plain calls: linking a file fails if the name exists."""
    if new.is_file():
        try:
            path.hardlink_to(new)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    if os.path.lexists(path):
        raise OSError(errno.EEXIST, "another process made it meanwhile")
    new.rename(path)


def _swap(new: Path, path: Path, old: Path) -> None:
    """Replace with plain renames; if the second fails, or after an interrupt, the old output returns.

    Raises:
        OSError: the new output cannot take its place; the text says where the old one is, unless it has returned.
    """
    old.mkdir()
    try:
        path.rename(old / path.name)
        new.rename(path)
    except BaseException as error:
        if os.path.lexists(old / path.name) and not os.path.lexists(path):
            try:
                (old / path.name).rename(path)
            except OSError:
                text = f"{error}; the old output is in {old / path.name}, and the next run in that folder puts it back"
                raise OSError(errno.EIO, text) from None
        raise


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Call Linux's atomic rename with a flag; return False if the system or the file system lacks it."""
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
