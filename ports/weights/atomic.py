"""Outputs that appear whole or not at all: written under a temporary name in the same folder, flushed, renamed.

A process that is killed leaves at most a hidden `.NAME.….partial` behind, never anything under the final name. The
final step is one system call: a rename that refuses to replace what is there, or (`force`) one that exchanges the two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports.weights.hub import WeightsError

NOREPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
AT_FDCWD = -100
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def publish(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write a file or a folder at; what stands there at the end becomes `path`.

    Raises:
        WeightsError: there is such an output and `force` is not set, no such folder, no permission, a full disk.
    """
    path = Path(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise WeightsError(f"output {path}: no such folder {folder}")
    if not force and os.path.lexists(path):
        raise WeightsError(f"output {path}: exists; --force (force=True) replaces it")
    partial = folder / f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        yield partial
        sync(partial)
        _move(partial, path.absolute(), force)
        _sync_one(folder)
    except OSError as error:
        raise WeightsError(f"output {path}: cannot be written: {error.strerror or error}") from None
    finally:
        for left in folder.glob(f"{_escaped(partial.name)}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def sync(path: Path) -> None:
    """Flushes a file, or a folder and all in it, to the disk."""
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


def _move(partial: Path, path: Path, force: bool) -> None:
    if not force:
        if not _renameat2(partial, path, NOREPLACE):
            if os.path.lexists(path):
                raise OSError(errno.EEXIST, "another process made it meanwhile")
            partial.rename(path)
        return
    if path.is_dir() or partial.is_dir():
        if os.path.lexists(path) and not _renameat2(partial, path, EXCHANGE):
            path.rename(partial.with_name(f"{partial.name}.old"))
            partial.rename(path)
        elif not os.path.lexists(path):
            partial.rename(path)
        return
    partial.replace(path)


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Linux's atomic rename with a flag; False where the system or the file system lacks it."""
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
