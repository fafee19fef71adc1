"""What a command says when something goes wrong: one line and exit 2, whoever made the mistake; 1 means "mismatch"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity.cli_weights
from parity import terminal
from parity.cli import main
from ports.weights import WeightsError, guard, inspection, load, open_checkpoint, save, training
from ports.weights.guard import faults_of

ROOT = Path(__file__).resolve().parents[1]


def one_line(capsys: Any) -> str:
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def raising(error: BaseException) -> Any:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), AssertionError(), UnicodeError("bad"), OSError(5, "io")]
)
def test_a_defect_of_ours_is_called_so(
    error: Exception, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "w.npz", {"a": np.ones(2)})
    monkeypatch.setattr(parity.cli_weights, "_print", raising(error))
    assert main(["inspect", str(tmp_path / "w.npz")]) == 2
    said = one_line(capsys)
    assert said.startswith("parity: this is a defect of this package, not of your input: ")
    assert type(error).__name__ in said
    assert "test_boundary.py:" in said
    monkeypatch.setenv(guard.DEBUG, "1")
    with pytest.raises(type(error)):
        main(["inspect", str(tmp_path / "w.npz")])


def test_memory_that_is_out(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "w.npz", {"a": np.ones(2)})
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(parity.cli_weights, "_print", raising(error))
        assert main(["inspect", str(tmp_path / "w.npz")]) == 2
        assert "out of memory" in one_line(capsys)


FAULTS = [
    KeyError("x"),
    TypeError("no"),
    IndexError("1"),
    AttributeError("a"),
    ZeroDivisionError(),
    OverflowError("big"),
]


@pytest.mark.parametrize("error", [*FAULTS, RecursionError()], ids=lambda error: type(error).__name__)
def test_whatever_a_file_makes_the_code_raise_is_one_line(
    error: Exception, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the reader, too: where a checkpoint is taken apart, recognised, described."""
    path = tmp_path / "w.npz"
    save(path, {"a": np.ones(2)})
    monkeypatch.setattr(training, "split", raising(error))
    for read in (load, open_checkpoint, inspection.inspect, inspection.tensors):
        with pytest.raises(WeightsError, match=r"w\.npz: damaged, or not a file of weights: "):
            read(path)
    for command in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "o.npz")]):
        assert main(command) == 2
        assert "damaged" in one_line(capsys)


def test_the_debug_variable_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.DEBUG, "1")
    with pytest.raises(KeyError), faults_of(tmp_path):
        raise KeyError("x")


def test_a_pipe_that_is_closed_early(tmp_path: Path) -> None:
    """`parity inspect … | head -1`: no traceback, nothing on stderr."""
    path = tmp_path / "w.safetensors"
    save(path, {f"layer{i}.weight": np.zeros(1, np.float32) for i in range(20_000)})
    command = f"{sys.executable} -m parity inspect {path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.startswith("file ")
    assert done.stderr == ""


def test_of_many_problems_some_are_shown(capsys: Any) -> None:
    terminal.complain("parity", "\n".join(f"problem {i}" for i in range(100)))
    assert one_line(capsys).endswith("problem 0 problem 1; problem 2; problem 3 … and 96 more")
