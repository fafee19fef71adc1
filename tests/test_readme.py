"""README's Python runs, and its table is the one that was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from readme import RESULTS, ROOT, readme

TEXT = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        assert 5 < len([line for line in block.splitlines() if line.strip()]) <= 15  # of code
        exec(compile(block, "README.md", "exec"), {})


def test_the_table_is_what_was_measured() -> None:
    assert readme(TEXT, json.loads(RESULTS.read_text())) == TEXT


def test_a_changed_figure_is_noticed() -> None:
    results = json.loads(RESULTS.read_text())
    results["models"][0]["largest"]["nnx"]["output.eval"] = 0.5
    assert readme(TEXT, results) != TEXT


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)`?", TEXT))
    assert {"parity", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
