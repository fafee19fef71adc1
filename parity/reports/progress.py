"""What a long command says of itself on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ports.errors import printable


class progress:
    """Says on stderr what is being done: a moving line on a terminal, elsewhere a line after every `EVERY` seconds."""

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
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.moving)

    def __enter__(self) -> Any:
        self.bar.start()
        task = self.bar.add_task(self.name, total=None)

        def tell(text: str) -> None:
            text = printable(text)
            if self.moving:
                self.bar.update(task, description=f"{self.name}: {text}")
            elif time.monotonic() - self.said >= self.EVERY:
                self.said = time.monotonic()
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)

        return tell

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
