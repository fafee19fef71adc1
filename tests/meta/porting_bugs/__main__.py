"""The command `python -m tests.meta.porting_bugs`: exit 0 where every bug is caught, placed and named, else 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.reports import terminal
from ports.errors import printable

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME ...]", help="Some bugs; by default all.")]
Store = Annotated[bool, typer.Option("--store", help="Keep what was measured in the results and in the page.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured there.")]
Blind = Annotated[bool, typer.Option("--blind", help="The bugs that were written blind.")]


@app.command()
def bugs(some: Names = None, blind: Blind = False, store: Store = False, json_file: Json = None) -> int:
    """Replay porting bugs of real projects, and say what the check and the usual rules make of each.

    Exit 0 where the check passes every right version, and catches, places and names every wrong one; 1 where it does
    not.
    """
    terminal.writable("--json", json_file)
    from .. import faithful
    from . import chosen, running, table

    rows = {name: bug for name, bug in chosen(some or ()).items() if bug.blind or not blind}
    outcomes = {}
    with faithful.compiled_once():
        for name, bug in rows.items():
            outcomes[name] = outcome = running.run(bug)
            missed = table.missed({**running.row(bug), **vars(outcome)})
            print(printable(f"{name}: {missed or f'caught, placed, named [{outcome.trap}]'}"), flush=True)
            if store:
                table.store(running.to_json({name: outcome}, rows))
    found = running.to_json(outcomes, rows)
    if json_file is not None:
        terminal.write("--json", json_file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 1 if any(table.missed(bug) for bug in found["bugs"].values()) else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "porting bugs", arguments, "python -m tests.meta.porting_bugs")


if __name__ == "__main__":
    sys.exit(main())
