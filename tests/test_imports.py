"""Imports go one way, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What may not be imported: by package, and by the name of a file in any of them.
PACKAGES = {"ports": {"parity", "benchmarks"}, "parity": {"benchmarks"}}
FRAMEWORKS = {
    "pytorch.py": {"jax", "flax", "optax"},
    "nnx.py": {"torch"},
    "linen.py": {"torch"},
    "spec.py": {"torch", "jax", "flax"},
}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def violations(root: Path) -> list[str]:
    found = []
    for package, forbidden in PACKAGES.items():
        for file in sorted((root / package).rglob("*.py")):
            wrong = set(imported(file)) & (forbidden | FRAMEWORKS.get(file.name, set()))
            found += [f"{file.relative_to(root)} imports {name}" for name in sorted(wrong)]
    return found


def test_directions() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("ports/weights/hub.py", "def f():\n    import parity.checker", "ports/weights/hub.py imports parity"),
        ("parity/cli.py", "from benchmarks import run", "parity/cli.py imports benchmarks"),
        ("ports/resnet/nnx.py", "import torch.nn", "ports/resnet/nnx.py imports torch"),
        ("ports/resnet/pytorch.py", "from jax import numpy", "ports/resnet/pytorch.py imports jax"),
    ],
)
def test_a_planted_violation_is_found(file: str, code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == [said]


@pytest.mark.parametrize("module", ["ports", "ports.weights", "ports.resnet.spec", "parity", "parity.cli"])
def test_loads_no_framework(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'jax', 'flax'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "set()"
