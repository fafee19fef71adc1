"""README's Python runs, and its table is the one that was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from readme import ROOT, TABLES, Results, load, readme

TEXT = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        assert 5 < len([line for line in block.splitlines() if line.strip()]) <= 15  # of code
        exec(compile(block, "README.md", "exec"), {})


def _wrong_parity(results: Results) -> None:
    results["models"][0]["largest"]["nnx"]["output.eval"] = 0.5


def _wrong_score(results: Results) -> None:
    results["results"][0]["name"] = not results["results"][0]["name"]


def _wrong_cost(results: Results) -> None:
    results["results"][0]["ratio"] += 1


def _wrong_conversion(results: Results) -> None:
    results["files"]["sharded"]["seconds"] += 100


def _wrong_speed(results: Results) -> None:
    row = next(row for row in results["rows"] if row["subject"] == "nnx")
    for one in row["rounds"]:
        one["ms"] *= 2


WRONG = {
    "speed": _wrong_speed,
    "means": _wrong_speed,
    "autotune": _wrong_speed,
    "flags": _wrong_speed,
    "parity": _wrong_parity,
    "score": _wrong_score,
    "cost": _wrong_cost,
    "conversion": _wrong_conversion,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_what_was_measured(name: str) -> None:
    results = load(name)
    assert readme(TEXT, {name: results}) == TEXT
    WRONG[name](results)
    assert readme(TEXT, {name: results}) != TEXT


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)`?", TEXT))
    assert {"parity", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
