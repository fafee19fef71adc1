"""The command `python -m tests.meta`: exit 0 where the targets are met, else 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.reports import terminal
from parity.reports.progress import progress
from ports.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")]
Every = Annotated[bool, typer.Option("--all", help="Every mistake, and 1000 faithful runs.")]
Trap = Annotated[str | None, typer.Option(metavar="NAME", help="The cases of one mistake.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that share the work.")]
Faithful = Annotated[int | None, typer.Option(metavar="N", help="Number of faithful runs.")]


@app.command()
def score(
    every: Every = False,
    trap: Trap = None,
    faithful: Faithful = None,
    workers: Workers = 1,
    json_file: Json = None,
) -> int:
    """Plant known mistakes in Flax ports, run faithful ones, and count what the check makes of them.

    A sample of the mistakes; with --trap one of them; with --all every one, and 1000 faithful runs. Exit 0 where the
    targets are met, else 1.
    """
    terminal.writable("--json", json_file)
    if faithful is not None and not 0 <= faithful <= 10**6:
        raise UserError(f"--faithful: got {faithful}, expected 0 to 1000000")
    if not 1 <= workers <= 256:
        raise UserError(f"--workers: got {workers}, expected 1 to 256 processes")

    if every and trap is not None:
        raise UserError("got both --all and --trap, expected one of them")

    from . import CASES, SAMPLE, lines, measure, of_trap, sample, table

    runs = faithful if faithful is not None else 1000 if every else 0
    chosen = CASES if every else sample(CASES, SAMPLE) if trap is None else of_trap(trap)
    with progress("score") as tell:
        found = measure(chosen, runs, workers, progress=tell)
    console = terminal.console()
    console.print(table(found))
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        terminal.write("--json", json_file, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    return 0 if found.ok else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "score", arguments, "python -m tests.meta")


if __name__ == "__main__":
    sys.exit(main())
