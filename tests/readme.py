"""README's table of parity results, made from the stored result of `parity check --json`.

python tests/readme.py     writes the table into README.md
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "parity-cpu.json"
START, END = "<!-- parity table -->", "<!-- end -->"


def worst(model: dict[str, Any], field: str, quantity: str) -> float:
    return max(found[quantity] for found in model[field].values())


def table(results: dict[str, Any]) -> str:
    """A row a network: distances are relative L2, the larger of the two ports; the multiple is that of any quantity."""
    lines = [
        "| network | eval output | parameter gradients | statistics | 3 SGD steps | worst / response |",
        "|---|---|---|---|---|---|",
    ]
    for model in results["models"]:
        quantities = ("output.eval", "gradient.parameter", "statistics", "training.parameter")
        distances = " | ".join(f"{worst(model, 'largest', q):.1e}" for q in quantities)
        multiple = max(times for found in model["multiple"].values() for times in found.values())
        lines.append(f"| `{model['model']}` | {distances} | {multiple:.1f} |")
    where = results["environment"]
    lines += [
        "",
        f"Measured on {where['date'][:10]}: {where['cores']} CPU cores, Python {where['python']}, "
        f"torch {where['torch']}, jax {where['jax']}, flax {where['flax']}, optax {where['optax']}. A tensor passes at "
        f"up to {where['multiple']} times its response.",
    ]
    return "\n".join(lines)


def readme(text: str, results: dict[str, Any]) -> str:
    """The text with the table in its place."""
    found = re.subn(f"(?s){START}.*?{END}", lambda _: f"{START}\n{table(results)}\n{END}", text)
    assert found[1] == 1, "README.md has no place for the table"
    return found[0]


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(readme(file.read_text(), json.loads(RESULTS.read_text())))
