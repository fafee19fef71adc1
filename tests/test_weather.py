"""No test depends on how busy the machine is, on unseeded numbers or on the order of the tests."""

from __future__ import annotations

import ast
import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
CLOCKS = {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "sleep"}
# Waits for another process whose length decides nothing, or clocks that are not part of a test.
ALLOWED = {
    ("test_benchmarks.py", "sleep"): "between two looks at a file that another process writes",
    ("test_bad_files.py", "sleep"): "until a process is killed at a moment that does not matter",
    (
        "test_benchmark_processes.py",
        "sleep",
    ): "between two looks at another process, and what a clock of the test replaces",
    ("test_benchmark_processes.py", "perf_counter"): "what a clock of the test replaces",
    ("workers.py", "monotonic"): "when a command of its own ends, and what hangs is killed",
    ("workers.py", "process_time"): "CPU time, for the parent that kills what hangs",
    ("__init__.py", "monotonic"): "how long a planted mistake took, for the report of `make score`",
    ("running.py", "monotonic"): "how long the check of a pair took, for whoever waits",
    ("kills.py", "perf_counter"): "how long a writer is let write; no moment decides anything",
    ("kills.py", "sleep"): "until a process is killed at a moment that does not matter",
}
SHORTEST = 120  # seconds of a timeout that only ends what hangs


def modules() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


def used(tree: ast.AST) -> set[str]:
    """Return the functions of the module `time` that some code calls or hands on."""
    names = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names if alias.name == "time"}  # fmt: skip
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time"
             for alias in node.names}  # fmt: skip
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
              and isinstance(node.value, ast.Name) and node.value.id in names}  # fmt: skip
    return found & CLOCKS


@pytest.mark.parametrize("code", ["import time\ntime.sleep(1)", "import time as t\nf(t.monotonic)",
                                  "from time import perf_counter"])  # fmt: skip
def test_clocks_are_seen(code: str) -> None:
    assert len(used(ast.parse(code))) == 1


def test_no_test_looks_at_the_clock() -> None:
    found = {(path.name, name) for path in modules() for name in used(ast.parse(path.read_text()))}
    assert found == set(ALLOWED)


def test_no_timeout_is_short() -> None:
    keywords = [
        (path.name, node.value.lineno, node.value.value)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant)
    ]
    assert [row for row in keywords if isinstance(row[2], int | float) and row[2] < SHORTEST] == []


def test_hypothesis_neither_draws_at_random_nor_looks_at_the_clock() -> None:
    profile = settings()
    assert profile.deadline is None
    assert profile.derandomize
    assert {check.name for check in profile.suppress_health_check} >= {"too_slow", "function_scoped_fixture"}
    own = [path.name for path in modules() if "suppress_health_check=[" in path.read_text() and path != Path(__file__)]
    assert own == []  # a list of a test's own would replace that of the profile


@pytest.mark.parametrize("before", [0, 5])
def test_every_test_draws_the_same_numbers(before: int) -> None:
    """Numbers are drawn from the start of each generator, whatever a test before this one drew."""
    draws = random.Random(0).random(), np.random.RandomState(0).rand(), torch.rand(1, generator=seeded()).item()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == draws  # noqa: NPY002
    for _ in range(before + 1):
        assert 0 <= random.random() + np.random.rand() + torch.rand(1).item() < 3  # noqa: NPY002


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def order(*options: str) -> list[str]:
    """Return the tests of two modules in the order in which pytest would run them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-o", "addopts=-q", "-p", "no:cacheprovider", *options]
    files = [str(TESTS / name) for name in ("test_spec.py", "test_weather.py")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=True, cwd=TESTS.parent)
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.nightly
def test_a_seed_shuffles_the_tests() -> None:
    plain, once = order(), order("--shuffle", "1")
    assert sorted(plain) == sorted(once)
    assert plain != once
    assert once == order("--shuffle", "1") != order("--shuffle", "2")
    files = [line.partition("::")[0] for line in once]
    assert sum(a != b for a, b in itertools.pairwise(files)) == 1  # a module's tests stay together
