"""The examples run as their first lines say, and show what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# What each prints.
SHOWN = {
    "gpt_three_mistakes.py": [
        r"h\.0\.ln_1 \[norm-epsilon-1e-6\]",
        r"h\.0 \[attention-",
        r"h\.0 \[gelu-tanh\]",
        "parity: True",
    ],
    "port_mlp.py": [r"\[gelu-tanh\]", "parity in float64: PyTorch = nnx"],
    "resume_training.py": ["step 4: loss", "step 6: loss"],
    "test_port.py": ["2 passed"],
}
# README's code is `port_mlp.py`; the others take several checks.
NIGHTLY = ("gpt_three_mistakes.py", "port_mlp.py", "test_port.py")


def test_all_examples_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SHOWN}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else []) for name in SHOWN]
)
def test_an_example_shows_what_it_says(name: str) -> None:
    how = ["-m", "pytest", "-p", "no:cacheprovider"] if name.startswith("test_") else []
    command = [sys.executable, *how, str(EXAMPLES / name)]
    run = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert re.search(".*".join(SHOWN[name]), run.stdout, re.S), run.stdout
    for ours, theirs in re.findall(r"([\d.]+) in PyTorch, ([\d.]+) in Flax", run.stdout):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
