"""What a command says when something goes wrong: one line and exit 2, whoever made the mistake; 1 means "mismatch"."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity.commands.weights
from parity.commands.cli import main
from parity.reports import terminal
from parity.running.probes import photographs
from ports import export
from ports.errors import UserError
from ports.weights import WeightsError, load, open_checkpoint, save
from ports.weights.checkpoints import inspection, splitting
from ports.weights.files import guard
from ports.weights.files.guard import faults_of

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
    monkeypatch.setattr(parity.commands.weights, "_print", raising(error))
    assert main(["inspect", str(tmp_path / "w.npz")]) == 2
    said = one_line(capsys)
    assert said.startswith("parity: this is a defect of this package, not of your input: ")
    assert type(error).__name__ in said
    assert "test_boundary.py:" in said
    monkeypatch.setenv(guard.DEBUG, "1")
    assert main(["inspect", str(tmp_path / "w.npz")]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_memory_that_is_out(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "w.npz", {"a": np.ones(2)})
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(parity.commands.weights, "_print", raising(error))
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
    monkeypatch.setattr(splitting, "split", raising(error))
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "w.npz"
    save(path, {"卷积": np.ones(2), "a": np.ones(2)})
    return path


@pytest.mark.parametrize("arguments", [["models"], ["inspect", "FILE"]])
def test_a_pipe_that_nobody_reads(
    arguments: list[str], checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Click exits with 1 then, which means "mismatch"; a short output fails only when it is flushed."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([str(checkpoint) if a == "FILE" else a for a in arguments]) == 2
        assert sys.stdout is stream
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has such a device")
def test_a_full_disk_under_stdout(checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["inspect", str(checkpoint)]) == 2
    assert one_line(capsys) == "parity: cannot write: No space left on device"


def test_a_terminal_that_is_ascii(checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["inspect", str(checkpoint)]) == 0
    assert b"\\u5377\\u79ef" in stream.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert stream.errors == "strict"
    assert capsys.readouterr().err == ""


def test_no_stdout_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["models"]) == 0


def test_code_that_ends_the_process_decides_nothing(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sys.exit(0)` in somebody's module was exit code 0: parity."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text("import sys\n\n\ndef pair():\n    sys.exit(0)\n")
    assert main(["check", "ends.py:pair"]) == 2
    assert one_line(capsys) == "parity: the code that was run ended the process (exit 0); nothing was decided"


LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", f"{LONG}.npz"],
        ["inspect", "FILE", "--model", LONG],
        ["inspect", "--rules", f"{LONG}.npz", "FILE"],
        ["convert", f"{LONG}.npz", "o.npz"],
        ["convert", "FILE", f"{LONG}.npz"],
        ["convert", "FILE", "o.npz", "--rules", LONG],
        ["convert", "FILE", "o.npz", "--key", LONG],
        ["diff", LONG, "FILE"],
        ["check", "resnet18", "--json", LONG],
        ["check", "resnet18", "--images", LONG],
        ["check", f"{LONG}.py:f"],
    ],
    ids=lambda arguments: " ".join(a[:10] for a in arguments),
)
def test_names_of_5000_characters(
    arguments: list[str], checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert main([str(checkpoint) if a == "FILE" else a for a in arguments]) in (0, 2)
    out, err = capsys.readouterr()
    assert "defect" not in err
    assert len(err.splitlines()) <= 1
    assert len(out) + len(err) < 4000


def test_the_end_of_a_long_line_says_what_is_wrong(capsys: Any) -> None:
    terminal.complain("parity", f"weights {LONG}: no such file")
    line = one_line(capsys)
    assert line.startswith("parity: weights xxx")
    assert line.endswith("xxx: no such file")
    assert len(line) < 1100


@pytest.mark.parametrize("name", ["a\0b", LONG], ids=["zero byte", "long"])
def test_names_that_no_file_can_have(name: str) -> None:
    for read in (load, open_checkpoint, inspection.inspect, inspection.tensors, photographs):
        with pytest.raises(UserError):
            read(f"{name}.npz")
    with pytest.raises(UserError):
        export.load(f"{name}.pt2")


def test_of_many_problems_some_are_shown(capsys: Any) -> None:
    terminal.complain("parity", "\n".join(f"problem {i}" for i in range(100)))
    assert one_line(capsys).endswith("problem 0 problem 1; problem 2; problem 3 … and 96 more")
