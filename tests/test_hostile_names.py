"""Names from a file are data: printed they forge no line, and what a source says of itself is kept."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats import suffix, written

from parity.commands.cli import main
from parity.reports import terminal
from parity.reports.html import page
from parity.reports.progress import progress
from parity.reports.report import Finding, Model, Report, Row
from ports.errors import printable
from ports.weights import WeightsError, convert, load, open_checkpoint, save
from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, Content
from ports.weights.rules import draft, rulesfile

HOSTILE = (
    "\x1b[2J\x1b[31mred",
    "a\nnetwork             resnet50",
    "a\r\nparity: note: all is well",
    "bell\a",
    "\x9b31m",
    "right\u202eto left",
    "\u2066isolated\u2069",
    "marks\u200e\u200f\u061c",
    "zero\u200bwidth\ufeff",
    "line\u2028separator\u2029",
    "delete\x7f",
    "tab\there",
    "vertical\x0b\x0c\x1c\x85",
)
RIGHT = ("conv1.weight", "卷积.权重", "größe.è", "слой.вес", "層-1", "emoji 🎉", "हिन्दी", "ع.وزن", "a\\b", "[bold]x[/]")


def seen(text: str) -> bool:
    """Whether all that stands in an output can be seen, line by line."""
    return all(line.isprintable() for line in text.split("\n"))


def test_letters_of_every_script_stay() -> None:
    assert [printable(name) for name in RIGHT] == list(RIGHT)
    assert all(printable(name).isprintable() for name in HOSTILE)
    assert printable("\x1b\n\u202e\udcff") == "\\x1b\\n\\u202e\\udcff"


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "orbax"])
def test_inspect_prints_no_name_raw(name: str, tmp_path: Path, capsys: Any) -> None:
    row = FORMATS[name]
    tensors = {n: np.ones(2, np.float32) for n in (*HOSTILE, *RIGHT)}
    path = written(tmp_path / f"w{suffix(row)}", tensors, row, {"author\x1b": "me\nnetwork resnet50"})
    assert main(["inspect", str(path), "--source-format", name, "--values"]) == 0
    out, err = capsys.readouterr()
    assert seen(out)
    assert seen(err)
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("network")]) == 1
    assert len([line for line in lines if line.startswith("  ")]) == len(tensors)
    assert all(any(right in line for line in lines) for right in RIGHT)


def test_errors_and_notes_print_no_name_raw(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "w.safetensors"
    save(path, {name: np.ones(2, np.float32) for name in HOSTILE})
    for arguments in (
        ["convert", str(path), str(tmp_path / "o.npz"), "--model", "resnet50"],
        ["convert", str(path), str(tmp_path / "o.npz"), "--to", "nnx"],
        ["convert", str(path), str(tmp_path / "o.npz"), "--key", "a\nb"],
        ["inspect", str(tmp_path / "no\nsuch\x1bfile.npz")],
        ["convert", str(path), str(tmp_path / "no\x1b" / "o.npz")],
    ):
        assert main(arguments) in (0, 2)
        out, err = capsys.readouterr()
        assert seen(out)
        assert seen(err)
        assert len(err.strip().splitlines()) == 1 or "note" in err
    with pytest.raises(WeightsError) as raised:
        open_checkpoint(path, model="resnet50")
    assert all(problem.isprintable() for problem in raised.value.problems)


def test_names_survive_what_is_printed_of_them(tmp_path: Path) -> None:
    """They are escaped where they are shown, not where they are kept."""
    tensors = {name: np.ones(2, np.float32) for name in (*HOSTILE, *RIGHT)}
    save(tmp_path / "w.safetensors", tensors)
    convert(tmp_path / "w.safetensors", tmp_path / "o.npz")
    assert load(tmp_path / "o.npz").keys() == tensors.keys()


def test_a_draft_of_rules_is_toml_whatever_the_names_are(tmp_path: Path) -> None:
    names = ('a"b\\', "x\ny = 1", "\x1b[0m", "卷积", "\x7f\u202e", "🎉")
    left = {f"{name}.weight": np.ones((i + 2, 3)) for i, name in enumerate(names)}
    right = {f"{name}.kernel": np.ones((3, i + 2)) for i, name in enumerate(names)}
    text = draft.draft(left, {**right, "extra\n[[layer]].kernel": np.ones((40, 40))})
    assert [row["source"] for row in tomllib.loads(text)["layer"]] == list(names)
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    assert len(rulesfile.load(tmp_path / "r.toml").rows) == len(names)


def test_reports_print_no_name_raw(tmp_path: Path) -> None:
    """A table, a line of a finding, a page: the names of somebody's own modules."""
    name = "layer\x1b[31m\u202e\nfine: parity"
    row = Row("nnx", "layer.eval", name, 1.0, 0.1, ok=False)
    report = Report((Model("Net\n\x1b", (row,), findings=(Finding("nnx", name, None, f"{name} differs"),)),), {})
    assert seen(str(report))
    assert "fine: parity" in str(report)
    assert not any(line.startswith("fine") for line in str(report).splitlines())
    html = page(report)
    assert "\x1b" not in html
    assert "\u202e" not in html
    terminal.write("--json", tmp_path / "r.json", json.dumps(report.to_json()))
    assert seen((tmp_path / "r.json").read_text())


def test_inspect_with_a_network_that_is_not_known(tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "w.npz", {"a": np.ones(2)})
    assert main(["inspect", str(tmp_path / "w.npz"), "--model", "NONSENSE"]) == 2
    assert "unknown network 'NONSENSE'; nearest:" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "w.npz"), "--model", "resnet18"]) == 0


ABOUT = {"format": "pt", "licence": "CC-BY-4.0", "author": "Ada Lovelace", "note": "卷积"}


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_what_a_source_says_of_itself_is_kept(row: Any, tmp_path: Path) -> None:
    """Its licence and its author, through every format that has room; a second conversion adds nothing."""
    source = tmp_path / "s.safetensors"
    formats.write(source, Content({"a": np.ones((2, 2), np.float32)}, ABOUT), FORMATS["safetensors"])
    path, again = tmp_path / f"w{suffix(row)}", tmp_path / "again.safetensors"
    result = convert(source, path, format=row.name, to="torch")
    if row.name == "msgpack":
        assert any("no room for what the source says of itself" in note for note in result.notes)
        return
    about = formats.read(path, row.name).metadata
    assert {name: about[name] for name in ABOUT} == ABOUT
    assert about["source"] == "s.safetensors"
    convert(path, again, source_format=row.name)
    second = formats.read(again).metadata
    assert second.keys() == about.keys()
    assert {name: second[name] for name in ABOUT} == ABOUT


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_metadata_that_are_not_valid_unicode(row: Any, tmp_path: Path) -> None:
    """JSON can say half of a character; Orbax complained of a type of C++, safetensors of a tensor's name."""
    source = tmp_path / "s.npz"
    formats.importlib.import_module("ports.weights.files.formats.npz").write(
        source, Content({"a": np.ones((2, 2), np.float32)}, {"auth\ud800or": "Ada \udcff"})
    )
    path = tmp_path / f"w{suffix(row)}"
    convert(source, path, format=row.name, to="torch")
    if row.name != "msgpack":
        assert formats.read(path, row.name).metadata["auth\\ud800or"] == "Ada \\udcff"


def test_what_a_conversion_says_itself_is_left_out_with_a_note(tmp_path: Path) -> None:
    """Somebody else's word at a name that this package writes; its own of an earlier conversion goes without a note."""
    about = {"optimizer": "AdamW", "network": "mine", "licence": "MIT"}
    formats.write(tmp_path / "s.safetensors", Content({"a": np.ones(2)}, about), FORMATS["safetensors"])
    result = convert(tmp_path / "s.safetensors", tmp_path / "o.safetensors")
    assert any("left out of what the source says of itself: network, optimizer" in note for note in result.notes)
    written_about = formats.read(tmp_path / "o.safetensors").metadata
    assert written_about["licence"] == "MIT"
    assert not {"optimizer", "network"} & written_about.keys()
    again = convert(tmp_path / "o.safetensors", tmp_path / "again.npz")
    assert not any("left out of what" in note for note in again.notes)


@pytest.mark.parametrize("row", [row for row in FORMATS.values() if row.name != "orbax"], ids=lambda row: row.name)
def test_a_source_whose_name_is_not_text(row: Any, tmp_path: Path) -> None:
    """Linux lets a file be called by any bytes; its name goes into the metadata of what is made of it."""
    source = tmp_path / "w\udcff.npz"
    save(source, {"a": np.ones(2)})
    path = tmp_path / f"o{suffix(row)}"
    convert(source, path, format=row.name, to="torch")
    assert formats.read(path, row.name).metadata.get("source") in ("w\\udcff.npz", None)


def test_progress_prints_no_name_raw(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0)
    with progress("a\x1b[2J\nb") as tell:
        tell("layer\x1b\nparity in every port")
    assert seen(capsys.readouterr().err)


def test_the_format_follows_the_layout(tmp_path: Path) -> None:
    """Hugging Face's libraries go by it."""
    from test_convert import noise

    formats.write(tmp_path / "s.safetensors", Content(noise(), ABOUT), FORMATS["safetensors"])
    convert(tmp_path / "s.safetensors", tmp_path / "f.safetensors", to="nnx")
    assert formats.read(tmp_path / "f.safetensors").metadata["format"] == "flax"
    convert(tmp_path / "f.safetensors", tmp_path / "t.safetensors")
    assert formats.read(tmp_path / "t.safetensors").metadata["format"] == "pt"
