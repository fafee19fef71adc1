"""The command `python -m tests.twins`: exit 0 where the check says of every twin what its row says, else 1."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from parity.reports import terminal
from ports.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME ...]", help="Some twins; by default all.")]
Fast = Annotated[bool, typer.Option("--fast", help="The quick selection.")]
Store = Annotated[bool, typer.Option("--store", help="Keep what was measured in verdicts.json and docs/twins.md.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured there.")]


@app.command()
def twins(names: Names = None, fast: Fast = False, store: Store = False, json_file: Json = None) -> int:
    """Check published networks that exist in PyTorch and in Flax, and compare the verdicts with the stored ones.

    Exit 0 where the check tells the known real differences of each and nothing else, 1 where it does not.
    """
    terminal.writable("--json", json_file)
    from . import table
    from .catalogue import chosen
    from .running import measured, ready, run, to_json

    if names and fast:
        raise UserError("got names and --fast, expected one of them")
    rows = chosen(names or (), fast)
    if missing := sorted({row.package for row in rows if not ready(row.package)}):
        raise UserError(f"{', '.join(missing)}: no release with Flax classes is installed; run make twins")
    quiet()
    outcomes, wrong = measured(rows, run, "twins")
    if json_file is not None:
        terminal.write("--json", json_file, json.dumps(to_json(outcomes), indent=1) + "\n")
    if store:
        table.store(to_json(outcomes))
    return 1 if wrong else 0


def quiet() -> None:
    """Keep the packages from asking the network, and from advising to leave Flax."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "twins", arguments, "python -m tests.twins")


if __name__ == "__main__":
    sys.exit(main())
