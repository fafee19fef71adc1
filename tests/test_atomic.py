"""Outputs that replace others: what is left when a step fails or a process is killed, and what the next run removes."""

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
from test_formats import same, written

from ports.weights import WeightsError, load, save
from ports.weights.files import atomic, formats
from ports.weights.files.atomic import publish
from ports.weights.files.formats import FORMATS

SMALL = {"a.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "a.bias": np.ones(3, np.float16)}
OTHER = {"b": np.zeros(3)}
FOLDERS = [row for row in FORMATS.values() if row.folder]
LEFT = f".x.{atomic.machine()}01234567.partial"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a folder of somebody else's."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replaced(out: Path, row: Any) -> None:
    with publish(out, force=True, foreign=formats.foreign(row)) as partial:
        formats.write(partial, formats.Content(OTHER), row)


def failing(*calls: int, error: BaseException) -> Callable[..., Any]:
    """`Path.rename` that fails at these calls."""
    rename, seen = Path.rename, []

    def failed(self: Path, target: Any) -> Any:
        seen.append(target)
        if len(seen) in calls:
            raise error
        return rename(self, target)

    return failed


BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two folders."""
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("error", [BROKEN, KeyboardInterrupt()], ids=["broken", "interrupted"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: row.name)
def test_plain_renames_that_fail_keep_the_old_output(
    row: Any, call: int, error: BaseException, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rename moves the old output aside, the second puts the new one in its place."""
    out = written(home / "out", SMALL, row)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(call, error=error))
        with pytest.raises((WeightsError, KeyboardInterrupt), match=r"Input/output error|^$"):
            replaced(out, row)
    assert same(load(out, format=row.name), SMALL)
    assert names(home) == ["out", "photos"]


@pytest.mark.usefixtures("plain")
def test_an_old_output_that_cannot_return_is_named_and_returns_later(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename fails but the first; then the disk works again."""
    row = FORMATS["sharded"]
    out = written(home / "out", SMALL, row)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(*range(2, 9), error=BROKEN))
        with pytest.raises(WeightsError, match=r"cannot be written: .*the old output is in .*/old/out, and the next"):
            replaced(out, row)
    assert not out.exists()
    save(home / "other.npz", SMALL)
    assert same(load(out), SMALL)
    assert names(home) == ["other.npz", "out", "photos"]


@pytest.mark.usefixtures("plain")
def test_an_interruption_after_the_last_rename_keeps_the_new_output(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, rename = FORMATS["sharded"], Path.rename
    out = written(home / "out", SMALL, row)

    def interrupted(self: Path, target: Path) -> None:
        rename(self, target)
        if self.name == atomic.NEW:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replaced(out, row)
    assert same(load(out), OTHER)
    assert names(home) == ["out", "photos"]


@pytest.mark.usefixtures("plain")
def test_a_file_that_another_process_made_meanwhile_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look and the last step; `force` was not given."""
    monkeypatch.setattr(os.path, "lexists", lambda _: False)

    def meanwhile() -> None:
        with publish(home / "out.npz") as partial:
            partial.write_bytes(b"ours")
            monkeypatch.setattr("ports.weights.files.destination.check", lambda *_, **__: None)
            (home / "out.npz").write_bytes(b"theirs")

    with pytest.raises(WeightsError, match="File exists"):
        meanwhile()
    assert (home / "out.npz").read_bytes() == b"theirs"


KILLED_BETWEEN = """
import os
from pathlib import Path
from ports.weights.files import atomic, formats
rename, row = Path.rename, formats.FORMATS["sharded"]
def killed(self, target):
    if self.name == "new":
        os.kill(os.getpid(), 9)
    return rename(self, target)
atomic._renameat2, Path.rename = lambda *_: False, killed
with atomic.publish("out", force=True, foreign=formats.foreign(row)) as new:
    new.mkdir()
"""


def killed(script: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr


def test_a_kill_between_two_plain_renames(home: Path) -> None:
    """The old output is then under a hidden name; the next run in that folder puts it back."""
    written(home / "out", SMALL, FORMATS["sharded"])
    killed(KILLED_BETWEEN, home)
    assert not (home / "out").exists()
    with pytest.raises(WeightsError, match="exists; --force"):  # it is there again before the first look
        save(home / "out", SMALL, format="sharded")
    assert same(load(home / "out"), SMALL)
    assert names(home) == ["out", "photos"]


KILLED = """
import os
from ports.weights.files.atomic import publish
with publish("out.npz") as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_the_next_run_removes_what_a_killed_one_left(home: Path) -> None:
    """And leaves what a living process writes, what is not of this package, and what only looks like it."""
    killed(KILLED, home)
    assert [name for name in names(home) if name.startswith(".out")]
    strange = home / LEFT.replace(".x", ".mine")
    strange.mkdir()
    (strange / "cat.png").write_bytes(b"cat")
    link = home / LEFT.replace(".x", ".link")
    link.symlink_to("photos")
    (home / LEFT).mkdir()
    with publish(home / "living.npz") as partial:
        partial.write_bytes(b"whole")
        save(home / "other.npz", SMALL)
    assert (home / "living.npz").read_bytes() == b"whole"
    assert names(home) == sorted(["photos", "living.npz", "other.npz", strange.name, link.name])
    assert (strange / "cat.png").exists()
    assert (home / "photos" / "cat.png").exists()


@pytest.mark.parametrize("whose", ["another machine", "another user"])
def test_what_others_write_is_left(whose: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared file system a lock may be seen on its own machine only."""
    box = home / (".x.0123456789abcdef.partial" if whose == "another machine" else LEFT)
    (box / "new").mkdir(parents=True)
    (box / "lock").touch()
    if whose == "another user":
        monkeypatch.setattr(os, "geteuid", lambda: box.stat().st_uid + 1)
    atomic.clean(home)
    assert names(box) == ["lock", "new"]
    monkeypatch.undo()
    box.rename(home / LEFT)
    atomic.clean(home)
    assert names(home) == ["photos"]


def test_an_old_output_is_kept_where_its_place_is_taken_and_nothing_leads_elsewhere(home: Path) -> None:
    """What waits in the hidden folder is put beside it under its own name, links too, and never over another."""
    old = home / LEFT / "old"
    old.mkdir(parents=True)
    (home / LEFT / "lock").write_text("../away")
    (old / "link").symlink_to("../../photos")
    (old / "photos").mkdir()
    (old / "out").mkdir()
    before = names(home.parent)
    atomic.clean(home)
    assert names(home.parent) == before
    assert names(home) == ["link", "out", "photos"]
    assert names(home / "photos") == ["cat.png"]


def test_what_comes_while_the_output_is_written_is_kept(home: Path) -> None:
    row = FORMATS["sharded"]
    out = written(home / "out", SMALL, row)

    def meanwhile() -> None:
        with publish(out, force=True, foreign=formats.foreign(row)) as partial:
            formats.write(partial, formats.Content(OTHER), row)
            (out / "notes.txt").write_text("mine")

    with pytest.raises(WeightsError, match=r"holds notes\.txt"):
        meanwhile()
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize("name", ["é" * 120, "🙂" * 60, "x" * 250], ids=["two bytes", "four bytes", "one byte"])
def test_names_as_long_as_a_file_system_takes(name: str, home: Path) -> None:
    """The hidden folder's name is longer than the output's, and is cut by bytes."""
    save(home / f"{name}.npz", SMALL)
    save(home / f"{name}.npz", OTHER, force=True)
    assert same(load(home / f"{name}.npz"), OTHER)
    assert names(home) == sorted([f"{name}.npz", "photos"])


def test_a_lock_that_cannot_be_made_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for a folder, and for nothing in it."""
    opened = Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == atomic.LOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(WeightsError, match=r"out.npz: cannot be written: No space left on device"):
        save(home / "out.npz", SMALL)
    assert names(home) == ["photos"]


def test_the_output_has_the_rights_of_any_new_file(home: Path) -> None:
    """Only the hidden folder is for its owner alone."""
    (home / "plain").touch()
    save(home / "out.npz", SMALL)
    assert stat.S_IMODE((home / "out.npz").stat().st_mode) == stat.S_IMODE((home / "plain").stat().st_mode)
