"""The command `python -m tests.twins.published FOLDER`: exit 0 where the check says of every port what its row says."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.reports import terminal
from ports.errors import UserError

from ..__main__ import Json, quiet

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the clones of the projects are.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME ...]", help="Some ports; by default all.")]
Store = Annotated[bool, typer.Option("--store", help="Keep what was measured in verdicts.json and docs/ports.md.")]


@app.command()
def published(folder: Folder, names: Names = None, store: Store = False, json_file: Json = None) -> int:
    """Check Flax ports that others published, and compare the verdicts with the stored ones.

    Each project is a clone in FOLDER, at the commit of its rows; a missing one is said with the command that clones it.
    Exit 0 where the check tells the known real differences of each port and nothing else, 1 where it does not.
    """
    terminal.writable("--json", json_file)
    from ..catalogue import picked
    from ..running import measured
    from . import running, table
    from .catalogue import ALL

    known = {row.name: row for row in ALL}
    rows = picked(names or list(known), known, "port")
    if missing := running.missing(rows):
        raise UserError(f"got no {', '.join(missing)}, which these ports import: pip install {' '.join(missing)}")
    for project in {project for row in rows for project in row.projects}:
        project.use(folder)
    quiet()
    outcomes, wrong = measured(rows, functools.partial(running.run, clones=folder), "ports")
    found = running.to_json(outcomes)
    if json_file is not None:
        terminal.write("--json", json_file, json.dumps(found, indent=1) + "\n")
    if store:
        table.store(found)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "published", arguments, "python -m tests.twins.published")


if __name__ == "__main__":
    sys.exit(main())
