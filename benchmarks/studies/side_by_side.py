"""Commands that run in parallel until a time is over: the checks of a stage, which are not timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine.checkout import ROOT

GRACE = 5.0  # seconds between asking a command to end and ending it
LOOK = 0.2  # seconds between looks


@dataclass
class Command:
    """A Python command; its output goes to a file. `is_later`: its work comes after that of the others."""

    name: str
    arguments: Sequence[str]
    log: Path
    is_later: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or None if it was stopped, and after how many seconds."""

    command: Command
    code: int | None
    seconds: float

    def __str__(self) -> str:
        said = "stopped: it was not done" if self.code is None else f"exit code {self.code}"
        return f"{self.command.name}: {said} after {self.seconds:.0f} s"


def together(
    commands: Sequence[Command],
    seconds: float,
    variables: Mapping[str, str],
    tell: Callable[[Ended], None],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Ended]:
    """Run commands in parallel, and stop those that are not done after this many seconds.

    Args:
        tell: called with the result of each command as soon as it has ended.
    """
    begun, running, found = now(), {}, []
    for command in commands:
        with command.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command.arguments], stdout=log, stderr=log, env={**variables}, cwd=ROOT
            )
        if command.is_later:
            psutil.Process(process.pid).nice(10)
        running[command.name] = command, process
    try:
        while running and now() - begun < seconds:
            for command, process in [*running.values()]:
                if (code := process.poll()) is not None:
                    del running[command.name]
                    found.append(Ended(command, code, now() - begun))
                    tell(found[-1])
            if running:
                sleep(LOOK)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    for command, _ in running.values():
        found.append(Ended(command, None, now() - begun))
        tell(found[-1])
    return found
