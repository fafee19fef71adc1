"""How much memory a process takes: the most that it has held, and its own (anonymous) pages without mapped files."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from pathlib import Path


def held(pid: int | None = None) -> int:
    """Anonymous memory of a process (by default this one) in bytes; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def peak() -> int:
    """The most physical memory that this process has held since `forget`, in bytes; mapped files are included."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget() -> None:
    """Lets `peak` begin anew: what one setting took is not said of the next."""
    with contextlib.suppress(OSError):  # where a system does not allow it, the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


class Peak:
    """The largest anonymous memory of a process, in bytes, while the block runs; looked at every 20 ms."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid

    def __enter__(self) -> Peak:
        self.bytes, self.ended = held(self.pid), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self._look()  # what the block still holds is seen however rarely the thread had its turn

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, held(self.pid))
