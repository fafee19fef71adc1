"""The command: what it prints, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ports
from parity import pipeline, subjects
from parity.commands import cli
from parity.commands.cli import main
from parity.numerics.quantities import QUANTITIES
from parity.options import PairOptions
from parity.reports.report import Finding
from ports.resnet.spec import BASIC, ResNetSpec, Stage, Stem

ROOT = Path(__file__).resolve().parents[1]
ROW = {"port", "quantity", "tensor", "distance", "bound", "ok", "dtype"}
SMALL = "cifar_resnet20"
TINY = ResNetSpec("tiny", Stem(convs=((4, 3, 1),)), (Stage(4, 1),), BASIC, num_classes=3, input_size=8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, quick: None) -> str:
    """A network of one block with a name of its own, which compiles quickly."""
    monkeypatch.setitem(ports.NETWORKS, TINY.name, TINY)
    return TINY.name


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


def half_a_photograph(path: Path) -> Path:
    """A JPEG file that ends in its middle."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# Name: the arguments, in an empty folder; what the line says.
BAD: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "network": (lambda p: ["check", "resnet51"], "unknown network 'resnet51'; nearest: resnet50"),
    "second-network": (lambda p: ["check", SMALL, "nonsense"], "unknown network 'nonsense'"),
    "port": (lambda p: ["check", SMALL, "--ports", "keras"], "unknown port 'keras'; expected nnx or linen"),
    "no-port": (lambda p: ["check", SMALL, "--ports", ""], "ports: got none"),
    "ports-exchanged": (lambda p: ["check", SMALL, "--ports", "pytorch"], "unknown port 'pytorch'"),
    "option": (lambda p: ["check", SMALL, "--colour"], "No such option: --colour"),
    "command": (lambda p: ["chek"], "No such command 'chek'"),
    "all-and-names": (lambda p: ["check", SMALL, "--all"], "got both names and --all"),
    "nothing": (lambda p: ["check"], "name a network, or --all"),
    "batch": (lambda p: ["check", SMALL, "--batch", "0"], "batch: got 0"),
    "batch-text": (lambda p: ["check", SMALL, "--batch", "two"], "Invalid value for '--batch'"),
    "steps": (lambda p: ["check", SMALL, "--steps", "-1"], "steps: got -1"),
    "seed": (lambda p: ["check", SMALL, "--seed", "-1"], "seed: got -1"),
    "seed-too-large": (lambda p: ["check", SMALL, "--seed", 2**64], "seed: got 18446744073709551616"),
    "size": (lambda p: ["check", SMALL, "--image-size", "big"], "--image-size: got 'big', expected HxW"),
    "size-half": (lambda p: ["check", SMALL, "--image-size", "32x"], "--image-size: got '32x', expected HxW"),
    "size-zero": (lambda p: ["check", SMALL, "--image-size", "0x32"], "--image-size: got '0x32', expected HxW"),
    "size-negative": (lambda p: ["check", SMALL, "--image-size", "-4x4"], "--image-size: got '-4x4', expected HxW"),
    "size-too-large": (lambda p: ["check", SMALL, "--image-size", "999999999"], "expected 1 to"),
    "size-of-many-digits": (lambda p: ["check", SMALL, "--image-size", "9" * 5000], "expected HxW"),
    "images-missing": (lambda p: ["check", SMALL, "--images", p / "no.png"], "no such file or folder"),
    "images-text": (lambda p: ["check", SMALL, "--images", file(p, "a.png", b"text")], "not an image"),
    "images-folder-truncated": (
        lambda p: ["check", SMALL, "--images", half_a_photograph(folder(p / "d") / "a.jpg").parent],
        "a.jpg: cannot be read",
    ),
    "images-empty-folder": (lambda p: ["check", SMALL, "--images", folder(p / "d")], "no image in this folder"),
    "images-truncated": (
        lambda p: ["check", SMALL, "--images", file(p, "a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")],
        "a.png: ",
    ),
    "weights-folder": (lambda p: ["check", SMALL, "--weights", folder(p / "w.pth")], "w.pth: "),
    "weights-text": (
        lambda p: ["check", SMALL, "--weights", file(p, "w.pth", b"text")],
        "damaged, or not a file of weights",
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
    "json-is-a-folder": (lambda p: ["check", SMALL, "--json", folder(p / "d")], "d: is a folder"),
    "html-folder": (lambda p: ["check", SMALL, "--html", p / "no" / "f.html"], "--html"),
    "html-is-a-folder": (lambda p: ["check", SMALL, "--html", folder(p / "d")], "d: is a folder"),
    "two-batch": (lambda p: ["check", "--all", "--batch", "0"], "batch: got 0"),
    "two-port": (lambda p: ["check", SMALL, "wrn_40_4", "--ports", "keras"], "unknown port 'keras'"),
    "two-images": (lambda p: ["check", SMALL, "wrn_40_4", "--images", p / "no.png"], "no such file or folder"),
    "two-seed": (lambda p: ["check", SMALL, "wrn_40_4", "--seed", "-1"], "seed: got -1"),
    "one-value-a-channel": (
        lambda p: ["check", SMALL, "--batch", "1", "--image-size", "4x4"],
        "would see one value a channel",
    ),
    "memory": (lambda p: ["check", "resnet50", "--batch", "100000"], "GB of memory"),
}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress, which a slow machine would show before the line that says what is wrong."""
    monkeypatch.setattr(cli._progress, "EVERY", float("inf"))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_exit_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = BAD[case]
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("the networks were run"))
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


def test_a_mistake_leaves_an_older_result_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = file(tmp_path, "out.json", b"older")
    assert main(["check", SMALL, "--images", str(tmp_path / "no.png"), "--json", str(result)]) == 2
    assert capsys.readouterr().err.startswith("parity: images ")
    assert result.read_bytes() == b"older"


def test_a_good_run(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = file(tmp_path, "out.json", b"older")
    assert main(["check", tiny, "--ports", "nnx", "--json", str(result)]) == 0
    out, err = capsys.readouterr()
    assert "tiny: parity in float64: PyTorch = nnx" in out
    assert all(quantity in out for quantity in QUANTITIES)
    assert all(line.startswith("tiny: ") for line in err.splitlines())
    found = json.loads(result.read_text())
    assert found.keys() == {"schema", "ok", "models", "environment"}
    assert (found["schema"], found["ok"]) == (1, True)
    assert found["environment"].keys() >= {"torch", "jax", "flax", "optax", "python", "platform", "cores", "date"}
    (model,) = found["models"]
    assert model.keys() >= {"model", "ok", "rows", "first_divergence"}
    assert (model["model"], model["ok"], model["first_divergence"]) == (tiny, True, None)
    assert list(QUANTITIES) == [
        "output.eval",
        "layer.eval",
        "output.train",
        "layer.train",
        "loss",
        "gradient.parameter",
        "gradient.input",
        "statistics",
        "training.parameter",
        "training.state",
    ]
    assert [(row["port"], row["quantity"]) for row in model["rows"]] == [("nnx", quantity) for quantity in QUANTITIES]
    for row in model["rows"]:
        assert row.keys() == ROW
        assert (row["dtype"], row["ok"]) == ("float64", True)
        assert 0 <= row["distance"] <= row["bound"] < 1e-7
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_network_that_cannot_be_checked_does_not_end_the_others(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two networks one would see a single value a channel. Both ports of the other are checked. With progress."""
    monkeypatch.setattr(cli._progress, "EVERY", 0)
    result = tmp_path / "out.json"
    assert main(["check", SMALL, tiny, "--batch", "1", "--image-size", "4x4", "--json", str(result)]) == 2
    out, err = capsys.readouterr()
    assert "tiny: parity in float64: PyTorch = nnx = linen" in out
    assert out.endswith("1 of 2 networks: parity in every port\n")
    assert [line for line in err.splitlines() if not line.startswith((f"{SMALL}: ", "tiny: "))] == [
        line for line in err.splitlines() if "would see one value a channel" in line
    ]
    assert "tiny: linen: compiling and running" in err
    found = json.loads(result.read_text())
    assert [(model["model"], model["ok"]) for model in found["models"]] == [(SMALL, False), ("tiny", True)]
    assert "would see one value a channel" in found["models"][0]["undecided"]
    assert [(row["port"], row["quantity"]) for row in found["models"][1]["rows"]] == [
        (port, quantity) for port in ("nnx", "linen") for quantity in QUANTITIES
    ]


def test_the_error_comes_behind_the_progress(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error late in a run: its line is the last one, and the only one that starts with `parity: `."""
    monkeypatch.setattr(cli._progress, "EVERY", 0)
    monkeypatch.setattr(pipeline, "run", late_error)
    assert main(["check", tiny, "--json", str(tmp_path / "out.json")]) == 2
    out, err = capsys.readouterr()
    *progress, last = err.splitlines()
    assert (out, last) == ("", "parity: out of memory; take a smaller --batch or --image-size, or a smaller network")
    assert progress
    assert all(line.startswith("tiny: ") for line in progress)
    assert not list(tmp_path.iterdir())


def late_error(_: object, __: object, progress: Callable[[str], None]) -> None:
    progress("reference in PyTorch")
    raise MemoryError


def test_a_difference_is_exit_1(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = subjects.built

    def wrong(spec: ResNetSpec, port: str, state: dict[str, np.ndarray], *_: object, **options: Any) -> object:
        return build(spec, port, {**state, "fc.bias": state["fc.bias"] + 1e-6}, **options)

    monkeypatch.setattr(subjects, "built", wrong)
    result, page = tmp_path / "out.json", tmp_path / "out.html"
    files = ["--json", str(result), "--html", str(page)]
    assert main(["check", tiny, "--ports", "nnx", "--steps", "1", *files]) == 1
    assert "tiny: NO parity: nnx differs from PyTorch" in capsys.readouterr().out
    found = json.loads(result.read_text())
    (model,) = found["models"]
    assert (found["ok"], model["ok"]) == (False, False)
    assert model["first_divergence"].items() >= {"port": "nnx", "layer": "fc", "quantity": "layer.eval"}.items()
    row = next(row for row in model["rows"] if row["quantity"] == "output.eval")
    assert row["ok"] is False
    assert row["distance"] > row["bound"]
    assert "No parity: tiny" in page.read_text(encoding="utf-8")


def test_an_output_that_is_nan_is_no_parity(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finite weights, and yet every output is NaN in both: nothing was compared."""
    net = ports.create(TINY, "pytorch", seed=0)
    net.bn1.running_var.fill_(-1)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert main(["check", tiny, "--ports", "nnx", "--steps", "1", "--weights", str(tmp_path / "w.pth")]) == 2
    out, err = capsys.readouterr()
    assert "parity in float64" not in out
    assert err.splitlines()[-1].startswith("parity: ")


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(ports.NETWORKS)
    assert "25,557,032" in out


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--help"], 0, ["models", "check"]),
        (["check", "--help"], 0, ["NAME...", "--all", "--ports", "--images", "--image-size", "--batch", "--steps"]),
        (["check", "--help"], 0, ["--seed", "--weights", "--json FILE", "--html FILE"]),
        (["diff", "--help"], 0, ["BEFORE", "AFTER", "--times"]),
        (["models", "--help"], 0, ["The named networks"]),
        ([], 2, ["Usage: parity", "models", "check"]),
    ],
    ids=["parity", "check", "check-2", "diff", "models", "nothing"],
)
def test_help(arguments: list[str], code: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert [text for text in shown if text not in out] == []
    assert err == ""


def as_a_module(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "parity", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )


def test_as_a_module() -> None:
    run = as_a_module("models")
    assert (run.returncode, run.stderr) == (0, "")
    assert all(name in run.stdout for name in ports.NETWORKS)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", ["network", "weights-that-warn"])
def test_a_mistake_as_a_module(case: str, tmp_path: Path) -> None:
    """In a process of its own, where a library's warning would reach the terminal."""
    arguments = ["resnet51"]
    if case == "weights-that-warn":  # PyTorch warns of a newer pickle protocol before it refuses the file
        arguments = [SMALL, "--weights", str(file(tmp_path, "w.pth", pickle.dumps({"a": 3}, protocol=4)))]
    run = as_a_module("check", *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("parity: ")
    assert run.stderr.count("\n") == 1, run.stderr


def test_a_file_may_import_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "one_beside.py").write_text("def make():\n    return 1, 2, 3\n")
    (tmp_path / "asked_for.py").write_text("from one_beside import make\n")
    before = [*sys.path]
    assert cli.pair(f"{tmp_path}/asked_for.py:make") == ((1, 2, 3), {})
    assert sys.path == before


def test_data_on_stdout(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", tiny, "--ports", "nnx", "--steps", "1", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is True
    assert "tiny: parity in float64" in err
    assert main(["check", "no_such_network", "--json", "-"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parity: unknown network")


def test_the_skill_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Its keys, options and commands exist."""
    assert main(["skill"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\nname: parity\n")
    cells = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert {"layer", "trap", "fix"} <= {*cells} <= {field.name for field in dataclasses.fields(Finding)} | {"trap"}
    for option in re.findall(r"`(\w+)=`", text):
        assert option in {field.name for field in dataclasses.fields(PairOptions)}
    assert main(["check", "--help"]) == 0
    commands = capsys.readouterr().out
    assert all(option in commands for option in re.findall(r"(?<![\w-])--[a-z]+", text))
