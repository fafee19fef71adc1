"""The memory that reading a file may take, counted before anything is decoded.

A file of some kilobytes can ask for gigabytes. By default a reader takes at most 20 times the file plus 64 MB, and
never more than half of the memory that the process may use: the free memory of the machine, within the limits of its
container and of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ports.weights.form.torch_form import WeightsError

TIMES, BASE = 20, 64 << 20
JSON = 24  # bytes of objects that a byte of JSON can become: `{},` is 72
CGROUPS = Path("/sys/fs/cgroup")


class Budget:
    """The memory that one source may take, over all its files.

    Attributes:
        limit: in bytes; it grows with the files that are opened.
        taken: the bytes that the readers have asked for so far.
    """

    def __init__(self, path: Path, max_memory: int | None = None) -> None:
        if max_memory is not None and max_memory < 1:
            raise WeightsError(f"max_memory: got {max_memory}, expected a number of bytes above 0")
        self._path, self._asked = path, max_memory
        self._half = usable() // 2 if max_memory is None else max_memory
        self._file, self.taken = 0, 0

    @property
    def limit(self) -> int:
        return self._half if self._asked is not None else min(self._half, TIMES * self._file + BASE)

    def grow(self, size: int) -> None:
        """Count the size of a file of the source."""
        self._file += size

    def take(self, count: int, what: str = "its tensors") -> None:
        """Count memory that is about to be used.

        Raises:
            WeightsError: the source asks for more than it may take.
        """
        self.taken += count
        if self.taken <= self.limit:
            return
        why = f"half of the {2 * self._half:,} bytes that this process may use"
        if self._asked is not None:
            why = "--max-memory"
        elif self.limit < self._half:
            why = f"{TIMES} times its {self._file:,} bytes and {BASE >> 20} MB"
        raise WeightsError(
            f"weights {self._path}: {what} would take {self.taken:,} bytes of memory, limit {self.limit:,} ({why}); "
            "--max-memory N (max_memory=) allows more"
        )


def usable() -> int:
    """Return the bytes of memory that this process may still take."""
    import psutil

    return max(0, min(psutil.virtual_memory().available, *_of_container(), *_of_process()))


def _of_process() -> Iterator[int]:
    """The memory that the limits of the process leave (`ulimit -v`, `ulimit -d`)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    memory = psutil.Process().memory_info()
    for limit, used in ((resource.RLIMIT_AS, memory.vms), (resource.RLIMIT_DATA, getattr(memory, "data", 0))):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            yield most - used


def _of_container() -> Iterator[int]:
    """The memory that the control groups leave: the process's own and all above it, of both versions."""
    for line in groups():
        _, controllers, at = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        place = root / at.strip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(root):
                break
            most, used = (_number(folder / name) for name in files)
            if most is not None:
                yield most - (used or 0) + _cache(folder / "memory.stat")


def groups() -> list[str]:
    """Return the control groups of this process, one line each: number, controllers, path."""
    try:
        return Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def _cache(file: Path) -> int:
    """Pages of files that the kernel gives up when memory is wanted; they count as used."""
    try:
        lines = dict(line.split()[:2] for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("inactive_file", lines.get("total_inactive_file", 0)))
