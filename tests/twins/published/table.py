"""Writes `docs/ports.md` from the stored verdicts and the rows: `python -m tests.twins.published.table`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..table import COLUMNS_OF_NUMBERS, explained, numbers
from .catalogue import ALL
from .port import Published

ROOT = Path(__file__).resolve().parents[3]
STORED = Path(__file__).with_name("verdicts.json")
PAGE = ROOT / "docs" / "ports.md"

HEAD = """# Published ports

Flax ports of PyTorch classes that other people published on GitHub, and what the check says of each. Each pair is built
from one small configuration with random weights. `parity.move` brings them over before the check, so that the verdicts
are about the code. `python -m tests.twins.published FOLDER` checks all of them again; it imports the projects from
clones in FOLDER, and says which to clone.

`tests/twins/published/table.py` writes this page from `tests/twins/published/verdicts.json`. Numbers are relative L2
distances in float64, the largest of any tensor. [Published twins](twins.md) has the classes of transformers and
diffusers."""

COLUMNS = ("port", "verdict", "mistakes", "differences", "layers", *COLUMNS_OF_NUMBERS)


def page(stored: Mapping[str, Any]) -> str:
    """Return the page that stored verdicts give."""
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    known = list(dict.fromkeys(difference for row in ALL for difference in row.differences))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in ALL:
        one = stored["ports"][row.name]
        said = ", ".join(str(known.index(difference) + 1) for difference in row.differences)
        cells = (row.name, _verdict(row, one), _mistakes(one), said, str(one["layers"] or ""), *numbers(one))
        lines.append("| " + " | ".join(cells) + " |")
    text = f"{HEAD}\n\nMeasured on {stored['date']} with {versions}.\n\n" + "\n".join(lines) + "\n\n"
    classes = "\n".join(f"- {row.name}: `{row.port}` against `{row.model}`" for row in ALL)
    text += f"## Classes\n\n{classes}\n\n## Projects\n\n" + "\n".join(_projects()) + "\n\n## Notes\n\n"
    text += "\n".join(f"- {row.name}: {row.note}." for row in ALL if row.note) + "\n\n## Real differences\n\n"
    text += "Each was read in both sources. Paths are those of the project or the package.\n\n"
    return (
        text + "\n".join(f"{i}. {explained(difference)}" for i, difference in enumerate(known, 1)) + "\n" + _defects()
    )


def _verdict(row: Published, stored: Mapping[str, Any]) -> str:
    return stored["verdict"] if row.defect is None else f"{stored['verdict']} (wrong: see below)"


def _mistakes(stored: Mapping[str, Any]) -> str:
    """Return the known mistakes that the check names, each once."""
    names = (f"`{one['trap']}`" if one["trap"] else "without a name" for one in stored["findings"])
    return ", ".join(dict.fromkeys(names))


def _projects() -> list[str]:
    projects = dict.fromkeys(project for row in ALL for project in row.projects)
    return [f"- [{one.name}](https://github.com/{one.name}) at `{one.commit}`" for one in projects]


def _defects() -> str:
    wrong = [(row.name, row.defect) for row in ALL if row.defect is not None]
    lines = [f"- {name}: {defect.verdict}. {defect.cause}." for name, defect in wrong]
    return "\n## Where the check is wrong\n\n" + "\n".join(lines) + "\n" if lines else ""


def load() -> dict[str, Any]:
    """Return the stored verdicts."""
    return json.loads(STORED.read_text())


def store(measured: Mapping[str, Any]) -> None:
    """Put what was measured in the place of what was stored of these ports, and write the page where all are known."""
    known = load()["ports"] if STORED.exists() else {}
    new = {**known, **measured["ports"]}
    projects = sorted({row.project.name for row in ALL})
    wrong = [row.name for row in ALL if row.defect is not None]
    kept = {
        **measured,
        "projects": projects,
        "wrong": wrong,
        "ports": {row.name: new[row.name] for row in ALL if row.name in new},
    }
    STORED.write_text(json.dumps(kept, indent=1) + "\n")
    if len(kept["ports"]) == len(ALL):
        PAGE.write_text(page(kept))


if __name__ == "__main__":
    PAGE.write_text(page(load()))
