"""Where outputs may go: what `--force` never removes, and what is left when a step fails or a process is killed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats import same, suffix, written

from parity import terminal
from parity.cli import main
from ports.errors import UserError
from ports.weights import WeightsError, atomic, convert, destination, formats, load, save
from ports.weights.atomic import publish
from ports.weights.formats import FORMATS

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


def test_reports_go_to_pipes_and_devices_as_they_are(home: Path) -> None:
    before = Path("/dev/null").stat()
    terminal.write("--json", Path("/dev/null"), "text")
    assert os.path.samestat(before, Path("/dev/null").stat())
    read, write = os.pipe()
    terminal.write("--html", Path(f"/dev/fd/{write}"), "a page\n")
    os.close(write)
    assert os.read(read, 100) == b"a page\n"
    os.close(read)
    with pytest.raises(UserError, match=r"--json /dev/full: cannot be written"):
        terminal.write("--json", Path("/dev/full"), "text" * 10**5)


def test_a_report_that_cannot_be_written_leaves_the_old_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.write("--json", home / "a.json", "old")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"^--json .*a.json: cannot be written: No space left"):
        terminal.write("--json", home / "a.json", "new")
    assert (home / "a.json").read_text() == "old"
    assert sorted(p.name for p in home.iterdir()) == ["a.json", "model.npz", "photos"]


def failing(path: Path, times: int) -> Callable[..., Any]:
    """`Path.rename` that fails from its n-th call on."""
    rename, calls = Path.rename, []

    def failed(self: Path, target: Any) -> Any:
        calls.append(target)
        if len(calls) == times:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    return failed


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: row.name)
def test_plain_renames_that_fail_keep_the_old_output(
    row: Any, times: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a system that cannot exchange two folders: the first moves the old one aside."""
    out = written(home / "out", SMALL, row)
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing(out, times))
    with (
        pytest.raises(WeightsError, match="Input/output error"),
        publish(out, force=True, foreign=formats.foreign(row)) as partial,
    ):
        formats.write(partial, formats.Content({"b": np.zeros(3)}), row)
    monkeypatch.undo()
    assert same(load(out, format=row.name), SMALL)
    assert sorted(p.name for p in home.iterdir()) == ["model.npz", "out", "photos"]


def test_a_kill_between_two_plain_renames(home: Path) -> None:
    """The old output is then under a hidden name; the next run in that folder puts it back."""
    written(home / "out", SMALL, FORMATS["sharded"])
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom ports.weights import atomic, formats\n"
        "atomic._renameat2 = lambda *_: False\nrename = Path.rename\n"
        "def killed(self, target):\n    if target.name == 'out': os.kill(os.getpid(), 9)\n"
        "    return rename(self, target)\n"
        "Path.rename = killed\nrow = formats.FORMATS['sharded']\n"
        "with atomic.publish('out', force=True, foreign=formats.foreign(row)) as new:\n    new.mkdir()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (home / "out").exists()
    save(home / "other.npz", SMALL)
    assert same(load(home / "out"), SMALL)
    assert sorted(p.name for p in home.iterdir()) == ["model.npz", "other.npz", "out", "photos"]


KILLED = """
import os
from ports.weights.atomic import publish
with publish("out.npz") as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_the_next_run_removes_what_a_killed_one_left(home: Path) -> None:
    """And leaves what a living process writes, what is not of this package, and what only looks like it."""
    subprocess.run([sys.executable, "-c", KILLED], cwd=home, check=False)
    left = [p for p in home.iterdir() if p.name.startswith(".out")]
    assert len(left) == 1
    strange = home / ".mine.0123456789abcdef.partial"
    strange.mkdir()
    (strange / "cat.png").write_bytes(b"cat")
    (home / ".x.0123456789abcdef.partial").symlink_to("photos")
    (home / ".y.0123456789abcdef.partial").mkdir()
    with publish(home / "living.npz") as partial:
        partial.write_bytes(b"whole")
        save(home / "other.npz", SMALL)
    assert (home / "living.npz").read_bytes() == b"whole"
    names = {p.name for p in home.iterdir()}
    assert names == {"model.npz", "photos", "living.npz", "other.npz", strange.name, ".x.0123456789abcdef.partial"}
    assert (strange / "cat.png").exists()
    assert (home / "photos" / "cat.png").exists()


def test_a_lock_file_cannot_lead_elsewhere(home: Path) -> None:
    """Its text is the name that an old output goes back to; somebody may have written another."""
    for i, name in enumerate(("../away", "/tmp/away", "..", "", "a/b")):
        box = home / f".x.{i:016x}.partial"
        (box / "old").mkdir(parents=True)
        (box / "lock").write_text(name)
    before = sorted(p.name for p in home.parent.iterdir())
    atomic.clean(home)
    assert sorted(p.name for p in home.parent.iterdir()) == before
    assert sorted(p.name for p in home.iterdir()) == ["model.npz", "photos"]


def test_what_comes_while_the_output_is_written_is_kept(home: Path) -> None:
    row = FORMATS["sharded"]
    out = written(home / "out", SMALL, row)

    def meanwhile() -> None:
        with publish(out, force=True, foreign=formats.foreign(row)) as partial:
            formats.write(partial, formats.Content({"b": np.zeros(3)}), row)
            (out / "notes.txt").write_text("mine")

    with pytest.raises(WeightsError, match=r"holds notes\.txt"):
        meanwhile()
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.iterdir())) == 3


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
