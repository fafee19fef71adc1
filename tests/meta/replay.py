"""A coding agent's loop, replayed: check a port, read the JSON, apply what `fix` says, check again.

The agent reads the report as data and nothing else. Where a finding has no `fix`, or where a fix changes nothing, it
stops.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from parity import api
from parity.commands import cli, edits
from parity.reports import terminal

from . import argument_parts, faithful

STORED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "agent-replay-cpu.json"

# So many checks of one port at most.
ROUNDS = 6


@dataclass(frozen=True)
class Replay:
    """What came of one port.

    Attributes:
        right: whether it ends in parity.
        named: the known mistakes that reports named, in order.
        fixed: those that a fix mended.
        fixes: what was applied, as a report prints it.
        source: the file at the end.
    """

    right: bool
    named: tuple[str, ...]
    fixed: tuple[str, ...]
    checks: int
    source: str = field(repr=False)
    fixes: tuple[str, ...] = ()


def report_of(file: Path) -> Mapping[str, Any]:
    """Return what `parity check FILE:make --json` writes."""
    written = file.with_suffix(".json")
    written.unlink(missing_ok=True)
    cli.main(["check", f"{file}:make", "--json", str(written)])
    return json.loads(written.read_text())["models"][0] if written.exists() else {"ok": False, "findings": []}


def replayed(source: str, folder: Path) -> Replay:
    """Replay the loop on the source of a port."""
    file = folder / "port_with_mistakes.py"
    named: dict[str, None] = {}
    fixed: dict[str, None] = {}
    fixes: list[str] = []
    number = 0
    while number < ROUNDS:
        number += 1
        file.write_text(source)
        model = report_of(file)
        if model["ok"]:
            return Replay(True, (*named,), (*fixed,), number, source, tuple(fixes))
        named |= dict.fromkeys(found["trap"] for found in model["findings"] if found["trap"])
        before = source
        for found in (one for one in model["findings"] if one["fix"]):
            new = next(edits.mended({file: source}, found["fix"]), {file: source})[file]
            fixed |= {found["trap"]: None} if new != source else {}
            fixes += [said(fix) for fix in found["fix"]]
            source = new
        if source == before:
            break
    return Replay(False, (*named,), (*fixed,), number, source, tuple(fixes))


def said(fix: Mapping[str, Any]) -> str:
    function = f"{fix['function']}: " if fix["function"] else ""
    return f"{fix['module']}: {function}{fix['argument']}={fix['expected']!r}"


def measured(number: int) -> dict[str, Any]:
    """Return what comes of so many drawn ports."""
    ports = []
    for i, parts in enumerate(argument_parts.drawn(number)):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            found = replayed(argument_parts.source(parts), Path(folder))
        planted = [part.trap for part in parts]
        arguments = not any(part in argument_parts.OTHERS for part in parts)
        kept = {"planted": planted, "arguments": arguments, "right": found.right, "checks": found.checks}
        ports.append({**kept, "named": [*found.named], "fixed": [*found.fixed], "fixes": [*found.fixes]})
        print(f"{i + 1}: {', '.join(planted)}: {'parity' if found.right else 'no parity'} after {found.checks} checks")
    return {"ports": ports, "environment": api.environment()}


Number = Annotated[int, typer.Option(help="How many ports.")]
Store = Annotated[bool, typer.Option("--store", help="Keep what was measured in the results.")]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def replay(number: Number = 20, store: Store = False) -> int:
    """Replay a coding agent's loop on drawn ports.

    Exit 0 where all ports whose mistakes are arguments end in parity.
    """
    with faithful.compiled_once():
        found = measured(number)
    if store:
        terminal.write("--store", STORED, json.dumps(found, indent=1) + "\n")
    return int(any(port["arguments"] and not port["right"] for port in found["ports"]))


if __name__ == "__main__":
    sys.exit(terminal.run(app, "replay", None, "python -m tests.meta.replay"))
