"""Weights files into the hub form, and files that are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ports.weights import WeightsError, load

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.half": torch.ones(2, dtype=torch.bfloat16)}


def nested(key: str) -> dict[str, Any]:
    return {key: STATE, "epoch": 3}


@pytest.mark.parametrize(
    "content",
    [STATE, nested("state_dict"), nested("model"), {"state_dict": {f"module.{n}": t for n, t in STATE.items()}}],
    ids=["plain", "state_dict", "model", "data-parallel"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".ckpt"])
def test_pytorch_files(content: Any, suffix: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / f"w{suffix}")
    found = load(tmp_path / f"w{suffix}")
    assert list(found) == list(STATE)
    assert np.array_equal(found["a.weight"], STATE["a.weight"].numpy())
    assert found["a.half"].dtype.name == "bfloat16"


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors").keys() == STATE.keys()


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
    elif kind == "no-tensors":
        torch.save({"a": 3}, path)
    elif kind == "a-tensor":
        torch.save(torch.ones(3), path)


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "empty", "code", "no-tensors", "a-tensor"])
def test_bad_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad(kind, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"weights .*w\.pth: ") as raised:
        load(tmp_path / "w.pth")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "evil_has_run").exists()


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"unknown format '\.h5'; expected \.pt"):
        load(tmp_path / "w.h5")
