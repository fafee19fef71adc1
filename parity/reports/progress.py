"""The progress of a long command on stderr."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ports.errors import printable


class progress:
    """Shows on stderr what is being done: a moving line on a terminal, elsewhere a line every `EVERY` seconds.

    If a run counts equal parts, it also shows how long the rest of them takes.
    """

    EVERY = 10

    def __init__(self, name: str) -> None:
        name = printable(name)
        self.name, self.moving, self.said = name, sys.stderr.isatty(), time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(pulse_style="cyan"),
            TimeElapsedColumn(),
        )
        self.begun: dict[str, tuple[float, int]] = {}
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.moving)

    def __enter__(self) -> Any:
        self.bar.start()
        task = self.bar.add_task(self.name, total=None)

        def tell(text: str) -> None:
            text = printable(text) + self.left(text)
            if self.moving:
                self.bar.update(task, description=f"{self.name}: {text}")
            elif time.monotonic() - self.said >= self.EVERY:
                self.said = time.monotonic()
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)

        return tell

    def left(self, text: str) -> str:
        """Return how long the rest of some equal parts takes, such as `rounding response 2 of 3`; otherwise nothing."""
        counted = re.fullmatch(r"(.*?)(\d+) of (\d+)", text)
        if counted is None:
            return ""
        now, number, count = time.monotonic(), int(counted[2]), int(counted[3])
        since, first = self.begun.setdefault(counted[1], (now, number))
        if number == first:
            return ""
        seconds = (now - since) / (number - first) * (count - number + 1)
        return f", about {_rounded(seconds)} left for these"

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _rounded(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 1):.0f} s"
