"""Where outputs may go, and what `--force` never removes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats import same, suffix, written

from parity.commands.cli import main
from parity.reports import terminal
from ports.errors import UserError
from ports.weights import WeightsError, convert, load, save
from ports.weights.files import destination, formats
from ports.weights.files.formats import FORMATS

SMALL = {"a.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "a.bias": np.ones(3, np.float16)}
FOLDERS = [row for row in FORMATS.values() if row.folder]
Shape = dict[str, tuple[int, int]]


def shape(folder: Path) -> Shape:
    """Return everything in a folder: names, kinds, sizes, and which file it is."""
    paths = sorted(folder.rglob("*"))
    return {p.relative_to(folder).as_posix(): (p.lstat().st_mode, p.lstat().st_ino) for p in paths}


def refused(folder: Path, capsys: Any, said: str, *arguments: str) -> None:
    """`parity convert` says one line, exits with 2 and changes nothing."""
    before = shape(folder)
    assert main(["convert", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0], lines[0]
    assert shape(folder) == before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and other people's files, as the current one."""
    save(tmp_path / "model.npz", SMALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "force"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.npz", "."), "is the current folder or one above it, which --force never replaces; write to model "),
        (("model.npz", ".."), "is the current folder or one above it"),
        (
            ("model.npz", "photos"),
            "is a folder that holds cat.png, which --force never removes; write to photos/model ",
        ),
        (("model.npz", "photos", "--shard-size", "1MB"), "holds cat.png"),
        (
            ("model.npz", "photos", "--format", "npz"),
            "holds cat.png, which --force never removes; write to photos/model",
        ),
        (("model.npz", "photos", "--format", "safetensors"), "write to photos/model.safetensors instead"),
        (("model.npz", "/dev/null", "--format", "npz"), "a folder of the system"),
        (("model.npz", "/dev/stdout", "--format", "npz"), "a folder of the system"),
        (("model.npz", "/proc/self/fd/1", "--format", "npz"), "a folder of the system"),
    ],
)
def test_folders_that_are_no_checkpoint(
    arguments: tuple[str, ...], said: str, force: tuple[str, ...], home: Path, capsys: Any
) -> None:
    refused(home, capsys, said, *arguments, "--to", "torch", *force)


def test_the_home_folder_and_a_mount_point(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are empty here: what protects them is what they are, not what they hold."""
    (home / "me" / "inner").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home / "me" / "inner"))
    for place in ("me", "me/inner"):
        refused(home, capsys, "your home folder", "model.npz", place, "--to", "torch", "--force")
    (home / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "disk")
    refused(home, capsys, "is a mount point", "model.npz", "disk", "--to", "torch", "--force")


@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: row.name)
def test_a_checkpoint_with_somebody_elses_file_in_it(row: Any, home: Path, capsys: Any) -> None:
    """At the top, and deep within where only the format writes."""
    out = written(home / "out", SMALL, row)
    options = ["model.npz", "out", "--to", "torch", "--force"]
    options += ["--shard-size", "1MB"] if row.name == "sharded" else []
    inner = next(p for p in sorted(out.rglob("*"), reverse=True) if p.is_file()).parent
    for place in (out / "notes.txt", out / "deep" / "cat.png", inner / "x"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"mine")
        refused(home, capsys, f"holds {place.relative_to(out)}", *options)
        place.unlink()
        if place.parent.name == "deep":
            place.parent.rmdir()
    assert main(["convert", *options]) == 0
    assert same(load(out, format=row.name), SMALL)


def test_what_orbax_itself_writes_may_be_replaced(home: Path) -> None:
    """With its defaults: OCDBT, sharding, array metadata."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(home / "out", {"model": {"w": np.ones((4, 5)), "layers": [np.ones(3), {"b": np.zeros(2)}]}})
    assert FORMATS["orbax"] in FOLDERS
    assert formats.foreign(FORMATS["orbax"])(home / "out") == []  # pyright: ignore[reportOptionalCall]
    assert main(["convert", "model.npz", "out", "--to", "torch", "--force"]) == 0
    assert same(load(home / "out"), SMALL)


def test_a_checkpoint_of_another_format_is_not_replaced(home: Path, capsys: Any) -> None:
    written(home / "out", SMALL, FORMATS["sharded"])
    refused(home, capsys, "holds model-00001-of-00001.safetensors", "model.npz", "out", "--to", "torch", "--force")


def test_an_empty_folder_is_replaced_with_force_alone(home: Path, capsys: Any) -> None:
    (home / "out").mkdir()
    refused(home, capsys, "exists; --force", "model.npz", "out", "--to", "torch")
    assert main(["convert", "model.npz", "out", "--to", "torch", "--force"]) == 0
    assert same(load(home / "out"), SMALL)


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_ocdbt": False, "use_zarr3": True}], ids=str)
def test_other_ways_in_which_orbax_writes(options: dict[str, bool], home: Path) -> None:
    """Text and numbers besides arrays, several pieces of an array, both versions of zarr."""
    import orbax.checkpoint as ocp

    tree = {"w": np.ones((40, 5)), "list": [np.ones(3)], "number": 3, "text": "x"}
    pieces = {**dict.fromkeys(("number", "text"), ocp.SaveArgs()), "list": [ocp.SaveArgs()]}
    pieces["w"] = ocp.SaveArgs(chunk_byte_size=400)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:  # pyright: ignore[reportArgumentType]
        checkpointer.save(home / "out", tree, save_args=pieces)
    foreign = formats.foreign(FORMATS["orbax"])
    assert foreign is not None
    assert foreign(home / "out") == []
    (home / "out" / "w" / "notes").touch()
    assert foreign(home / "out") == ["w/notes"]


def test_links_and_mounts_within_a_checkpoint_are_somebody_elses(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even under a name that the format uses: what is behind them would be lost from sight, or removed."""
    written(home / "out", SMALL, FORMATS["orbax"])
    options = ("model.npz", "out", "--to", "torch", "--force")
    for name in ("data", "array_metadatas"):
        (home / "out" / name).symlink_to(home / "photos")
        refused(home, capsys, f"holds {name},", *options)
        (home / "out" / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_mount", lambda self: self.name == "a.weight")
        refused(home, capsys, "holds a.weight,", *options)
    assert main(["convert", *options]) == 0


def test_an_index_does_not_make_any_file_a_shard(home: Path, capsys: Any) -> None:
    (home / "photos" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "cat.png"}}')
    refused(home, capsys, "holds cat.png", "model.npz", "photos", "--to", "torch", "--shard-size", "1MB", "--force")


def test_pipes_within_a_folder_are_not_waited_for(home: Path, capsys: Any) -> None:
    os.mkfifo(home / "photos" / "_METADATA")
    refused(home, capsys, "holds _METADATA, cat.png", "model.npz", "photos", "--to", "torch", "--force")
    (home / "photos" / "_CHECKPOINT_METADATA").touch()
    refused(home, capsys, "holds cat.png", "model.npz", "photos", "--to", "torch", "--force")


def test_a_file_is_not_replaced_by_a_folder(home: Path, capsys: Any) -> None:
    (home / "notes").write_text("mine")
    (home / "link").symlink_to("notes")
    (home / "dangling").symlink_to("nowhere")
    for name, said in (("notes", "is a file"), ("link", "is a link"), ("dangling", "is a link")):
        refused(home, capsys, f"{said}, expected a folder", "model.npz", name, "--to", "torch", "--force")


def test_a_current_folder_that_was_removed(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    assert main(["convert", str(home / "model.npz"), "out", "--to", "torch"]) == 2
    assert "output out: the current folder was removed" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="the current folder was removed"):
        save("out.npz", SMALL)
    with pytest.raises(UserError, match=r"--json out\.json: the current folder was removed"):
        terminal.write("--json", Path("out.json"), "")


def test_the_folder_where_links_of_a_source_lead_is_not_replaced(home: Path, capsys: Any) -> None:
    """As in a cache of downloads, whose names are links to files elsewhere."""
    formats.write(home / "set", formats.Content(SMALL), FORMATS["sharded"], shard_size=1000)
    (home / "names").mkdir()
    for file in (home / "set").iterdir():
        (home / "names" / file.name).symlink_to(file)
    options = ("--shard-size", "1MB", "--force")
    for source in ("names", "names/model.safetensors.index.json", "names/model-00001-of-00002.safetensors"):
        refused(home, capsys, "output set: holds its source", source, "set", *options)


def test_a_source_within_the_destination(home: Path, capsys: Any) -> None:
    """`convert ck/model.npz ck --force`, however the folder is spelled."""
    (home / "ck").mkdir()
    save(home / "ck" / "model.npz", SMALL)
    for spelled in ("ck", "./ck/", str(home / "ck"), "photos/../ck"):
        refused(home, capsys, "ck", "ck/model.npz", spelled, "--to", "torch", "--force")


def test_a_destination_that_is_part_of_its_source(home: Path, capsys: Any) -> None:
    """A shard, the index, a file beside them, a piece of an Orbax folder, the folder itself."""
    formats.write(home / "sh", formats.Content(SMALL), FORMATS["sharded"], shard_size=1000)
    shard = "sh/model-00001-of-00002.safetensors"
    os.link(home / shard, home / "same.safetensors")
    for target, said in (
        (shard, "lies within its source"),
        ("sh/new.npz", "lies within its source"),
        ("same.safetensors", "is a part of its source"),
    ):
        refused(home, capsys, said, "sh", target, "--force")
    refused(home, capsys, "is a part of its source", "sh/model.safetensors.index.json", shard, "--force")
    refused(home, capsys, "holds its source", "sh", "sh", "--shard-size", "1MB", "--force")
    written(home / "ck", SMALL, FORMATS["orbax"])
    refused(home, capsys, "holds its source", "ck", "ck", "--to", "torch", "--force")
    refused(home, capsys, "lies within its source", "ck", "ck/a.weight/0.0", "--format", "npz", "--force")
    (home / "link").symlink_to("ck")
    refused(home, capsys, "is a link to a folder", "ck", "link", "--to", "torch", "--force")


def test_links_are_replaced_and_never_followed(home: Path) -> None:
    (home / "real.npz").write_bytes(b"precious")
    for name in ("link.npz", "dangling.npz"):
        (home / name).symlink_to("real.npz" if name == "link.npz" else "nowhere.npz")
        convert(home / "model.npz", home / name, force=True)
        assert not (home / name).is_symlink()
        assert same(load(home / name), SMALL)
    assert (home / "real.npz").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_devices_and_pipes_stay_what_they_are(kind: str, home: Path, capsys: Any) -> None:
    """A device node of the test's own: a mistake would replace it by a file."""
    import socket

    place = home / "special"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "socket":
            server.bind(str(place))
        else:
            try:
                os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null
            except PermissionError:
                pytest.skip("only root makes devices")
        refused(home, capsys, "expected a file or a folder", "model.npz", str(place), "--format", "npz", "--force")
        if kind == "device":
            terminal.writable("--json", place)
            terminal.write("--json", place, "text")
            assert stat.S_ISCHR(place.lstat().st_mode)


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_save_follows_the_same_rules(row: Any, home: Path) -> None:
    for force in (False, True):
        with pytest.raises(WeightsError, match=r"holds cat\.png"):
            save(home / "photos", SMALL, format=row.name, force=force)
    out = home / f"out{suffix(row)}"
    for force in (False, True):
        save(out, SMALL, format=row.name, force=force)
    assert same(load(out, format=row.name), SMALL)


def test_no_rule_is_idle(home: Path) -> None:
    """Every place that is refused above may be written to where nothing speaks against it."""
    destination.check(home / "new", force=False)
    destination.check(home / "model.npz", force=True)
    with pytest.raises(WeightsError, match="no such folder"):
        destination.check(home / "nowhere" / "new", force=True)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(WeightsError, match=r"output .*: "):
            destination.check(home / name, force=True)
