"""Writes `docs/twins.md` from the stored verdicts and the rows: `python -m tests.twins.table`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .catalogue import ALL
from .twin import Difference, Twin

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("verdicts.json")
PAGE = ROOT / "docs" / "twins.md"

HEAD = """# Twins

Networks that other people published in PyTorch and in Flax, and what the check says of each. Each pair is built from
one small configuration, with dropout as published. Its weights are random ones of PyTorch's, brought over by the
package's own converter. `make twins` checks all of them in an environment of its own; `tests/twins/` holds the rows.

`tests/twins/table.py` writes this page from `tests/twins/verdicts.json`. Numbers are relative L2 distances in float64,
the largest of any tensor."""

COLUMNS_OF_NUMBERS = ("eval output", "gradients", "3 SGD steps")
COLUMNS = ("family", "PyTorch class", "verdict", "layers", *COLUMNS_OF_NUMBERS, "differences")
QUANTITIES = ("output.eval", "gradient.parameter", "training.parameter")


def page(stored: Mapping[str, Any]) -> str:
    """Return the page that stored verdicts give."""
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    known = list(dict.fromkeys(difference for twin in ALL for difference in twin.differences))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [_row(twin, stored["twins"][twin.name], known) for twin in ALL]
    text = f"{HEAD}\n\nMeasured with {versions}.\n\n" + "\n".join(lines) + "\n\n## Real differences\n\n"
    text += "Each was read in both sources. Paths are those of the package.\n\n"
    text += "\n".join(f"{i}. {explained(difference)}" for i, difference in enumerate(known, 1)) + "\n"
    return text + _defects()


def _row(twin: Twin, stored: Mapping[str, Any], known: list[Difference]) -> str:
    verdict = stored["verdict"] if twin.defect is None else f"{stored['verdict']} (wrong: see below)"
    said = ", ".join(str(known.index(difference) + 1) for difference in twin.differences)
    cells = (twin.name, f"`{twin.model}`", verdict, str(stored["layers"] or ""), *numbers(stored), said)
    return f"| {' | '.join(cells)} |"


def numbers(stored: Mapping[str, Any]) -> list[str]:
    """Return the cells of `COLUMNS_OF_NUMBERS` of a row."""
    distances = stored["distances"] or {}
    return [f"{distances[q]:.1e}" if distances.get(q) is not None else "" for q in QUANTITIES]


def explained(difference: Difference) -> str:
    """Return a difference with both sources, as an item of a list."""
    trap = f" (`{difference.trap}`)" if difference.trap else ""
    shown = "" if difference.layers else " The check says so as advice."
    return f"{difference.text}{trap}.{shown}\n   PyTorch: {difference.pytorch}.\n   Flax: {difference.flax}."


def _defects() -> str:
    wrong = [twin for twin in ALL if twin.defect is not None]
    if not wrong:
        return ""
    lines = [f"- {twin.name}: {twin.defect.verdict}. {twin.defect.cause}." for twin in wrong if twin.defect]
    return "\n## Where the check is wrong\n\n" + "\n".join(lines) + "\n"


def load() -> dict[str, Any]:
    """Return the stored verdicts."""
    return json.loads(STORED.read_text())


def store(measured: Mapping[str, Any]) -> None:
    """Put what was measured in the place of what was stored of these twins, and write the page where all are known."""
    known = load()["twins"] if STORED.exists() else {}
    new = {**known, **measured["twins"]}
    kept = {"versions": measured["versions"], "twins": {t.name: new[t.name] for t in ALL if t.name in new}}
    STORED.write_text(json.dumps(kept, indent=1) + "\n")
    if len(kept["twins"]) == len(ALL):
        PAGE.write_text(page(kept))


if __name__ == "__main__":
    PAGE.write_text(page(load()))
