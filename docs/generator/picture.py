"""Draw the report that README's code prints: `python -m docs.generator.picture` writes `docs/images/report.svg`."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "images" / "report.svg"
WIDTH = 96


def first_block() -> str:
    """Return the first Python code of README."""
    match = re.search(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text())
    assert match
    return match[1]


def reported(code: str) -> tuple[Any, str]:
    """Run code that makes a `report`, and return the report and what was printed."""
    space: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), space)
    return space["report"], printed.getvalue()


def drawn(report: Any) -> str:
    """Return the report as SVG, with no font from elsewhere."""
    from parity.reports.report import table, verdict

    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print("$ python check_my_port.py", style="bold")
    for model in report.models:
        console.print(table(model))
        for line in verdict(model):
            console.print(line, markup=False, highlight=False)
    svg = console.export_svg(title="parity", theme=MONOKAI, unique_id="report")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"<!--.*?-->\s*|https://www\.textualize\.io", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    FILE.write_text(drawn(reported(first_block())[0]))
