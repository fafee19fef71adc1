"""Results as a page that opens without a network, and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.reporting import charts, tables
from benchmarks.reporting.schema import Results

HEADINGS = {
    "throughput": "Throughput",
    "latency": "Latency at batch 1",
    "roofline": "Roofline: how far each step is from the limits of the device",
    "time": "Time to the first step",
}


def page(files: Sequence[tuple[str, Results]]) -> str:
    """One page of one or more results, each with its title."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    shown = [
        {
            "title": title,
            "tables": tables.tables(found),
            "below": tables.below(found),
            "charts": charts.draw(found),
            "subjects": {row["subject"]: row["about"] for row in found["rows"]},
            "commit": found["machine"]["commit"],
            "flags": found["machine"]["flags"],
            "readings": found["readings"],
        }
        for title, found in files
    ]
    return environment.get_template("report.html").render(files=shown, headings=HEADINGS)


def show(found: Results, console: Console) -> None:
    """The tables in a terminal."""
    for one in tables.tables(found):
        shown = RichTable(*one.head[:1], title=str(one.setting), box=None, pad_edge=False, title_justify="left")
        for name in one.head[1:]:
            shown.add_column(name, justify="right")
        for row in one.rows:
            shown.add_row(*row)
        console.print(shown)
        for note in one.notes:
            console.print(f"  {note}", markup=False, highlight=False)
        console.print()
    for line in tables.below(found):
        console.print(line, markup=False, highlight=False)
