"""The memory of a process: its peak, and its own (anonymous) pages without mapped files."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from pathlib import Path


def held(pid: int | None = None) -> int:
    """Anonymous memory of a process (by default this one) in bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def peak() -> int:
    """The peak of this process's physical memory since `forget`, in bytes, with mapped files."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget() -> None:
    """Reset `peak`, so that one setting's memory does not count for the next."""
    with contextlib.suppress(OSError):  # if a system does not allow it, the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")


class Peak:
    """The largest anonymous memory of a process, in bytes, while the block runs; sampled every 20 ms."""

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
        self._look()  # this sees what the block still holds, even if the thread rarely had its turn

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, held(self.pid))
