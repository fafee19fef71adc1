"""Weights files into the torch form, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ports.weights import WeightsError, load

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.half": torch.ones(2, dtype=torch.bfloat16)}
PARALLEL = {f"module.{name}": tensor for name, tensor in STATE.items()}


def nested(key: str) -> dict[str, Any]:
    return {key: STATE, "epoch": 3}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        nested("state_dict"),
        nested("model"),
        PARALLEL,
        {"state_dict": PARALLEL},
        {"model": {"state_dict": STATE}},
    ],
    ids=["plain", "state_dict", "model", "data-parallel", "data-parallel-nested", "nested-twice"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt", ".PTH"])
def test_pytorch_files(content: Any, suffix: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / f"w{suffix}")
    found = load(tmp_path / f"w{suffix}")
    assert list(found) == list(STATE)
    assert np.array_equal(found["a.weight"], STATE["a.weight"].numpy())
    assert found["a.half"].dtype.name == "bfloat16"


@pytest.mark.parametrize("content", [STATE, PARALLEL], ids=["plain", "data-parallel"])
def test_safetensors(content: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(content, tmp_path / "w.safetensors")
    found = load(tmp_path / "w.safetensors")
    assert found.keys() == STATE.keys()
    assert np.array_equal(found["a.weight"], STATE["a.weight"].numpy())
    assert found["a.half"].dtype.name == "bfloat16"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_bit_is_read(suffix: str, tmp_path: Path) -> None:
    """Negative zero, the smallest subnormal, NaNs with payloads; and a tensor that is a transposed view."""
    bits = torch.tensor([-(2**31), 1, 0x7FC12345, 0x7F800001], dtype=torch.int32)
    content = {"a": bits.view(torch.float32), "n": torch.tensor(2**40)}
    if suffix == ".pth":
        content["t"] = torch.arange(6.0).reshape(2, 3).T
        torch.save(content, tmp_path / "w.pth")
    else:
        save_file(content, tmp_path / "w.safetensors")
    found = load(tmp_path / f"w{suffix}")
    assert found["a"].tobytes() == bits.numpy().tobytes()
    assert (found["n"].dtype, found["n"].shape, found["n"]) == (np.int64, (), 2**40)
    if suffix == ".pth":
        assert found["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_prefix_that_not_every_name_has_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert list(load(tmp_path / "w.pth")) == ["module.a", "b"]


def test_what_was_read_is_a_copy(tmp_path: Path) -> None:
    """A safetensors file is mapped into memory: writing to what was read must not write to the file."""
    save_file(STATE, tmp_path / "w.safetensors")
    load(tmp_path / "w.safetensors")["a.weight"][...] = 7
    assert np.array_equal(load(tmp_path / "w.safetensors")["a.weight"], STATE["a.weight"].numpy())


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil_has_run",)


def write_bad(kind: str, path: Path) -> None:
    if kind == "truncated":
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "text":
        path.write_text("no weights here")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        torch.save({"a": Evil()}, path)
    elif kind == "code-legacy":
        torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False)
    elif kind == "code-pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "whole-network":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "no-names":
        torch.save({}, path)
    elif kind == "numbers-for-names":
        torch.save({1: torch.ones(3), "1": torch.zeros(3)}, path)
    elif kind == "nested-in-itself":
        content: dict[str, Any] = {}
        content["model"] = content
        torch.save(content, path)
    elif kind == "no-tensors":
        torch.save({"a": 3}, path)
    elif kind == "a-tensor":
        torch.save(torch.ones(3), path)


BAD = ["missing", "folder", "truncated", "text", "empty", "code", "code-legacy", "code-pickle", "whole-network"]
BAD += ["no-tensors", "no-names", "a-tensor", "numbers-for-names", "nested-in-itself"]


@pytest.fixture
def impatient() -> Iterator[None]:
    """Ends what does not end by itself."""

    def end(*_: object) -> None:
        pytest.fail("took more than 5 s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad(kind, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"weights .*w\.pth: ") as raised:
        load(tmp_path / "w.pth")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "evil_has_run").exists()


def test_code_would_run_without_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted file does what it is planted for."""
    monkeypatch.chdir(tmp_path)
    write_bad("code", tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "evil_has_run").exists()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 40, -1])
def test_truncated_safetensors(length: int, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"weights .*w\.safetensors: damaged"):
        load(file)


@pytest.mark.parametrize("length", [1, 64, 500, 1000, -200, -1])
def test_truncated_pytorch_files(length: int, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"weights .*w\.pth: damaged"):
        load(tmp_path / "w.pth")


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"weights .*w\.safetensors: "):
        load(tmp_path / "w.safetensors")


def test_safetensors_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(("name", "said"), [("w.h5", r"'\.h5'"), ("w", r"'\(no suffix\)'")])
def test_unknown_format(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=rf"unknown format {said}; expected \.pt .*\.safetensors"):
        load(tmp_path / name)
