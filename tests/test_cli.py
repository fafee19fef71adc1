"""The command: what it prints, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ports
from parity.cli import main
from parity.quantities import QUANTITIES

ROW = {"port", "quantity", "tensor", "distance", "bound", "ok", "dtype"}
SMALL = "cifar_resnet20"


def weights_file(path: Path, name: str = SMALL, spoil: str = "") -> Path:
    net = ports.create(name, "pytorch", seed=0)
    if spoil == "nan":
        with torch.no_grad():
            net.fc.bias[0] = np.nan
    torch.save(net.state_dict(), path)
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    return path


def file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# Name: the arguments, in an empty folder; what the line says.
BAD: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "network": (lambda p: ["check", "resnet51"], "unknown network 'resnet51'; nearest: resnet50"),
    "second-network": (lambda p: ["check", SMALL, "nonsense"], "unknown network 'nonsense'"),
    "port": (lambda p: ["check", SMALL, "--ports", "keras"], "unknown port 'keras'; expected nnx or linen"),
    "no-port": (lambda p: ["check", SMALL, "--ports", ""], "ports: got none"),
    "option": (lambda p: ["check", SMALL, "--colour"], "No such option: --colour"),
    "command": (lambda p: ["chek"], "No such command 'chek'"),
    "all-and-names": (lambda p: ["check", SMALL, "--all"], "got both names and --all"),
    "nothing": (lambda p: ["check"], "name a network, or --all"),
    "batch": (lambda p: ["check", SMALL, "--batch", "0"], "batch: got 0"),
    "batch-text": (lambda p: ["check", SMALL, "--batch", "two"], "Invalid value for '--batch'"),
    "steps": (lambda p: ["check", SMALL, "--steps", "-1"], "steps: got -1"),
    "seed": (lambda p: ["check", SMALL, "--seed", "-1"], "seed: got -1"),
    "size": (lambda p: ["check", SMALL, "--image-size", "big"], "--image-size: got 'big', expected HxW"),
    "images-missing": (lambda p: ["check", SMALL, "--images", p / "no.png"], "no such file or folder"),
    "images-text": (lambda p: ["check", SMALL, "--images", file(p, "a.png", b"text")], "not an image"),
    "images-empty-folder": (lambda p: ["check", SMALL, "--images", folder(p / "d")], "no image in this folder"),
    "images-truncated": (
        lambda p: ["check", SMALL, "--images", file(p, "a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")],
        "a.png: ",
    ),
    "weights-missing": (lambda p: ["check", SMALL, "--weights", p / "no.pth"], "no such file"),
    "weights-truncated": (
        lambda p: ["check", SMALL, "--weights", weights_file(p / "w.pth", spoil="truncated")],
        "damaged, or not a file of weights",
    ),
    "weights-of-another-network": (
        lambda p: ["check", SMALL, "--weights", weights_file(p / "w.pth", "tutorial_resnet")],
        "problems, nothing was written",
    ),
    "weights-nan": (
        lambda p: ["check", SMALL, "--weights", weights_file(p / "w.pth", spoil="nan")],
        "fc.bias has 1 of 10 numbers that are NaN",
    ),
    "weights-for-two": (lambda p: ["check", SMALL, "wrn_40_4", "--weights", p / "w.pth"], "got 2 networks"),
    "json-folder": (lambda p: ["check", SMALL, "--json", p / "no" / "f.json"], "no such folder"),
    "one-value-a-channel": (
        lambda p: ["check", SMALL, "--batch", "1", "--image-size", "4x4"],
        "would see one value a channel",
    ),
    "memory": (lambda p: ["check", "resnet50", "--batch", "100000"], "GB of memory"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = BAD[case]
    arguments = [str(a) for a in make(tmp_path)]
    if "--json" not in arguments and arguments[0] == "check":
        arguments += ["--json", str(tmp_path / "out.json")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("parity: ")
    assert said in err
    assert not list(tmp_path.glob("*out.json*"))


def test_a_good_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "out.json"
    assert main(["check", SMALL, "--json", str(result)]) == 0
    out, err = capsys.readouterr()
    assert "cifar_resnet20: parity in float64: PyTorch = nnx = linen" in out
    assert all(quantity in out for quantity in QUANTITIES)
    assert "Traceback" not in err
    found = json.loads(result.read_text())
    assert found.keys() == {"schema", "ok", "models", "environment"}
    assert (found["schema"], found["ok"]) == (1, True)
    (model,) = found["models"]
    assert model.keys() >= {"model", "ok", "rows", "first_divergence"}
    assert [(row["port"], row["quantity"]) for row in model["rows"]] == [
        (port, quantity) for port in ("nnx", "linen") for quantity in QUANTITIES
    ]
    assert all(row.keys() == ROW and row["dtype"] == "float64" for row in model["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(ports.NETWORKS)
    assert "25,557,032" in out


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "parity", "check", "resnet51"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
