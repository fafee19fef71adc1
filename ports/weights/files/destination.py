"""Checks where an output may go, and refuses a bad place before a byte is written.

`--force` replaces a file, or a folder that holds a checkpoint of the output's format and nothing else. It never removes
other people's files: another folder is refused, with the name that was probably meant.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ports.weights.files.source import Source, kind_of
from ports.weights.form.torch_form import WeightsError, describe

SYSTEM = ("/dev", "/proc", "/sys")
SHARED_MEMORY = "/dev/shm"
OPENED = re.compile(r"/dev/(?:stdout|(stderr)|fd/(\d{1,9}))|/proc/self/fd/(\d{1,9})")
LISTED = 3
Foreign = Callable[[Path], list[str]]


def everything(folder: Path) -> list[str]:
    """Return all entries of a folder: no format may replace it."""
    return sorted(entry.name for entry in folder.iterdir())


def special(path: Path) -> bool:
    """Return whether text is written to a path as it is: a device, a pipe, or one of the process' own files."""
    if _of_the_system(path):
        return True
    found = _status(path)
    return found is not None and not any(test(found.st_mode) for test in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK))


def descriptor(path: Path) -> int | None:
    """Return the number of the process' own open file that a path names: 1 for /dev/stdout."""
    match = OPENED.fullmatch(os.path.normpath(path))
    if match is None:
        return None
    return 2 if match[1] else int(match[2] or match[3] or 1)


def check(path: Path, *, force: bool, foreign: Foreign | None = None, name: str = "NAME") -> None:
    """Refuse a place where an output would do harm.

    If the output is a link to a file, the link is replaced and its target stays; a link to a folder is refused.

    Args:
        foreign: says what a folder holds besides a checkpoint of the output's format; None if the output is a file.
        name: of the output within a folder, for the message.

    Raises:
        WeightsError: no such parent folder; a device, pipe or socket; a folder that is not a checkpoint, or that is
            needed; an output that exists while `force` is not set.
    """
    parent = _parent(path)
    if not os.path.isdir(parent):  # noqa: PTH112 - False for a name that no file can have
        raise WeightsError(f"output {path}: no such folder {parent}")
    if _of_the_system(path):
        raise WeightsError(f"output {path}: is in a folder of the system; expected a file or a folder elsewhere")
    found = _status(path)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        _folder(path, force, foreign, name)
    elif not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise WeightsError(f"output {path}: is {kind_of(found.st_mode)}, expected a file or a folder")
    elif foreign is not None:
        got = "a link" if path.is_symlink() else "a file"
        raise WeightsError(f"output {path}: is {got}, expected a folder; remove it, or write to another name")
    elif not force:
        raise WeightsError(f"output {path}: exists; --force (force=True) replaces it")


def _parent(path: Path) -> Path:
    try:
        return path.absolute().parent
    except FileNotFoundError:
        raise WeightsError(f"output {path}: the current folder was removed; change to another") from None


def _of_the_system(path: Path) -> bool:
    real = Path(os.path.realpath(_parent(path)))
    return any(real.is_relative_to(folder) for folder in SYSTEM) and not real.is_relative_to(SHARED_MEMORY)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path.lstat() if path.is_symlink() else None
    except (OSError, ValueError) as error:
        raise WeightsError(f"output {path}: {getattr(error, 'strerror', None) or error}") from None


def _folder(path: Path, force: bool, foreign: Foreign | None, name: str) -> None:
    instead = f"write to {path / name} instead"
    if path.is_symlink():
        raise WeightsError(f"output {path}: is a link to a folder; remove it, or {instead}")
    for needed, why in _needed():
        if _within(needed, path):
            raise WeightsError(f"output {path}: {why}, which --force never replaces; {instead}")
    if path.is_mount():
        raise WeightsError(f"output {path}: is a mount point, which --force never replaces; {instead}")
    try:
        others = (foreign or everything)(path)
    except OSError as error:
        raise WeightsError(f"output {path}: {error.strerror}") from None
    if others:
        held = describe(others, LISTED)
        raise WeightsError(f"output {path}: is a folder that holds {held}, which --force never removes; {instead}")
    if foreign is None:
        raise WeightsError(f"output {path}: is a folder, expected a file; {instead}")
    if not force:
        raise WeightsError(f"output {path}: exists; --force (force=True) replaces it")


def _needed() -> Iterator[tuple[Path, str]]:
    for find, why in ((Path.cwd, "is the current folder or one above it"), (Path.home, "is or holds your home folder")):
        try:
            yield find(), why
        except (OSError, RuntimeError):  # the folder was deleted; nobody's home is known
            continue


def apart(path: Path, source: Source) -> None:
    """Refuse an output that would overwrite its source.

    A source that is one file may be replaced by its own conversion, because it is read completely first.

    Raises:
        WeightsError: the output is a part of its source, lies within it, or is a folder that holds it: the file's
            folder, or the folder of a link's target.
    """
    files = source.paths()
    if source.folder and _within(path.absolute().parent, source.path):
        raise WeightsError(f"output {path}: lies within its source {source.path}; write it somewhere else")
    for file in files:
        if os.path.isdir(path) and any(_within(place.parent, path) for place in _places(file)):  # noqa: PTH112
            raise WeightsError(f"output {path}: holds its source {file}; write it somewhere else")
        if len(files) > 1 and _same(file, path):
            raise WeightsError(f"output {path}: is a part of its source {source.path}; write it somewhere else")


def _places(file: Path) -> tuple[Path, Path]:
    """Return the folder in which a file is named, and the folder in which it really is."""
    return file.absolute(), Path(os.path.realpath(file))


def _within(inner: Path, outer: Path) -> bool:
    """Whether one folder is another, or lies in it: compare the system's folders, not their spelling."""
    real = Path(os.path.realpath(inner))
    return any(_same(place, outer) for place in (real, *real.parents))


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except (OSError, ValueError):
        return False


def unexplained(folder: Path, explained: Callable[[str], bool], known: Iterable[str] = ()) -> list[str]:
    """Return the paths within a folder that a format does not write.

    That includes empty folders, links to folders, and folders where another disk is mounted.

    Args:
        explained: whether a path belongs to the format.
        known: additional paths that belong to the format.
    """
    known = set(known)
    found = []
    for at, folders, files in os.walk(folder):
        inner = Path(at).relative_to(folder)
        elsewhere = [one for one in folders if (Path(at) / one).is_symlink() or (Path(at) / one).is_mount()]
        empty = [one for one in folders if one not in elsewhere and not any((Path(at) / one).iterdir())]
        folders[:] = [one for one in folders if one not in (*elsewhere, *empty)]
        paths = {(inner / one).as_posix() for one in (*files, *empty)} - known
        found += [path for path in paths if not explained(path)]
        found += [(inner / one).as_posix() for one in elsewhere]
    return sorted(found)
