"""How much memory a process takes: its own (anonymous) pages, not those of the files that it has mapped."""

from __future__ import annotations

import os
import re
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

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.bytes = max(self.bytes, held(self.pid))
