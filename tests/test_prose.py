"""The linters of prose find what is planted: `make lint` runs them with the same settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINTERS = {
    "typos": ["typos", "--config", "pyproject.toml"],
    "proselint": ["proselint", "--config", ".proselintrc.json", "check"],
}


@pytest.mark.parametrize(
    ("linter", "text", "said"),
    [
        ("typos", "The check recieves a model.", "`recieves` should be `receives`"),
        ("typos", 'raise ValueError("no such paramter")', "`paramter` should be `parameter`"),
        ("proselint", "The port is in eval mode in eval mode.", "a phrase is repeated"),
        ("proselint", "It is a very good port.", "weasel_words"),
    ],
)
def test_a_planted_mistake_is_found(linter: str, text: str, said: str, tmp_path: Path) -> None:
    program, *options = LINTERS[linter]
    page = tmp_path / "page.md"
    page.write_text(f"{text}\n")
    command = [str(Path(sys.executable).with_name(program)), *options, str(page)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert said in ran.stdout + ran.stderr

    page.write_text("The check reads a model.\n")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
