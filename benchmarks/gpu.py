"""`make gpu`: everything that is measured on a GPU, in stages of at most four minutes, the most wanted figures first.

    python3 -m benchmarks.gpu                    # stages a and b, within eight minutes
    python3 -m benchmarks.gpu --stage c,d
    python3 -m benchmarks.gpu --rehearsal        # all stages on the CPU, with small networks

`studies/gpu_stages.py` lists the stages. Each stage writes its own files, after every timed block, so a killed command
leaves the results that it had. Compilers' caches and references stay in a folder for the next stage. Exit 0: every
stage gave figures; 1: one gave none; 2: the command could not run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import description
from benchmarks.machine.checkout import ROOT
from benchmarks.options import options_of, positive
from benchmarks.studies import stage_runs
from benchmarks.studies.gpu_stages import DEFAULT, STAGES, rehearsed
from parity.reports import terminal
from ports.errors import UserError

RESULTS = Path("benchmarks", "results")
REHEARSALS = Path("build", "rehearsal")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class GpuOptions:
    """The options of `python -m benchmarks.gpu`."""

    stage: Annotated[str | None, typer.Option(help="Letters of stages, separated by commas. By default a,b.")] = None
    out: Annotated[Path | None, typer.Option(help="Folder of the results.", show_default=str(RESULTS))] = None
    minutes: Annotated[float | None, typer.Option(help="Time for all stages together.")] = None
    cache: Annotated[Path | None, typer.Option(help="Folder of compilers' caches and references.")] = None
    builders: Annotated[int | None, typer.Option(help="Programs that compile at a time.")] = None
    rehearsal: Annotated[bool, typer.Option("--rehearsal", help="All stages on the CPU, with small networks.")] = False
    ahead: Annotated[str | None, typer.Option(help="Only compile this subject of the stage.")] = None

    def __post_init__(self) -> None:
        positive("--minutes", self.minutes)
        if self.builders is not None and self.builders < 1:
            raise UserError(f"--builders: got {self.builders}, expected 1 or more")


@app.command(epilog="Stages: " + "; ".join(f"{letter}: {stage.about}" for letter, stage in STAGES.items()))
@options_of(GpuOptions)
def gpu(options: GpuOptions) -> int:
    """Check and time everything on an NVIDIA GPU, stage by stage."""
    rehearsal = options.rehearsal
    letters = _letters(options.stage, rehearsal)
    card = None if rehearsal else description.gpu()
    if card is None and not rehearsal:
        raise UserError(
            "got a machine without an NVIDIA GPU (nvidia-smi finds none), expected one; --rehearsal runs on the CPU"
        )
    out = options.out or ROOT / (REHEARSALS if rehearsal else RESULTS)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made: {error.strerror}") from None
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        cache = options.cache or (Path(folder) if rehearsal else _home())
        place = stage_runs.place_on(card, out, cache, options.builders)
        stages = {letter: rehearsed(letter, STAGES[letter]) if rehearsal else STAGES[letter] for letter in letters}
        return stage_runs.run(stages, place, options.minutes, options.ahead)


def _letters(stage: str | None, rehearsal: bool) -> list[str]:
    given = [word.strip() for word in stage.split(",")] if stage else [*(STAGES if rehearsal else DEFAULT)]
    if unknown := [letter for letter in given if letter not in STAGES]:
        raise UserError(f"--stage: got {unknown[0]!r}, expected some of {', '.join(STAGES)}")
    return [*dict.fromkeys(given)]


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ports-benchmarks"


def main(arguments: list[str]) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, stage_runs.NAME, arguments, "python -m benchmarks.gpu")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
