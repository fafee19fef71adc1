"""Reports that a command writes: files appear whole; devices, pipes and open files are written to as they are."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting import charts
from parity.reports import terminal
from ports.errors import UserError


def said(option: str, path: Path, text: str, *, again: bool = False) -> None:
    """A long run would not begin: one line names the option and the file."""
    with pytest.raises(UserError, match=f"^{option} {re.escape(str(path))}: .*{text}"):
        terminal.writable(option, path, again=again)


def test_devices_and_pipes(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    terminal.writable("--json", Path("/dev/null"))
    terminal.write("--json", Path("/dev/null"), "text")
    assert os.path.samestat(before, Path("/dev/null").stat())
    assert Path("/dev/null").stat().st_rdev == before.st_rdev
    read, write = os.pipe()
    terminal.write("--html", Path(f"/dev/fd/{write}"), "a page\n")
    os.close(write)
    assert os.read(read, 100) == b"a page\n"
    os.close(read)
    with pytest.raises(UserError, match=r"--json /dev/full: cannot be written"):
        terminal.write("--json", Path("/dev/full"), "text" * 10**5)


def test_a_named_pipe(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    terminal.writable("--json", pipe)
    terminal.write("--json", pipe, "text")
    reader.join()
    assert found == ["text"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    said("--log", pipe, "expected a file to read again", again=True)


def test_a_device_of_the_tests_own(tmp_path: Path) -> None:
    """A mistake would replace it by a file. A link to it is as good."""
    device, link = tmp_path / "null", tmp_path / "link"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    link.symlink_to("null")
    for place in (device, link):
        terminal.writable("--json", place)
        terminal.write("--json", place, "text")
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert link.is_symlink()


PRINTED = """
import sys
from pathlib import Path
from parity.reports import terminal
print("a table")
terminal.write("--json", Path(sys.argv[1]), "a report\\n")
print("a note")
"""


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_file_goes_on_at_its_position(path: str, tmp_path: Path) -> None:
    """Opened anew, it would be written over, or what is printed later would write over the report."""
    with (tmp_path / "out").open("wb") as file:
        subprocess.run([sys.executable, "-c", PRINTED, path], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "a table\na report\na note\n"


def test_places_that_cannot_be_written_are_told_before_a_long_run(tmp_path: Path) -> None:
    said("--json", Path("/dev/fd/987654"), "Bad file descriptor")
    said("--html", tmp_path, "is a folder")
    said("--html", tmp_path / "no" / "page.html", "no such folder")
    said("--html", tmp_path / ("x" * 300), "File name too long")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        said("--json", tmp_path / "socket", "is a socket")
    terminal.writable("--json", tmp_path / "new.json", again=True)
    terminal.writable("--json", None, again=True)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.write("--json", tmp_path / "a.json", "old")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"^--json .*a.json: cannot be written: No space left"):
            terminal.write("--json", tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    terminal.write("--json", tmp_path / "a.json", "a lone surrogate: \ud800")
    assert (tmp_path / "a.json").read_text() == "a lone surrogate: \\ud800"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_plots_are_written_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = {}
    monkeypatch.setattr(charts, "draw", lambda _: {"latency": "<svg/>"})
    assert [path.read_text() for path in charts.write(found, tmp_path / "plots")] == ["<svg/>"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--svg .*file: cannot be made: File exists; expected a folder"):
        charts.write(found, tmp_path / "file")
    (tmp_path / "plots" / "latency.svg").unlink()
    (tmp_path / "plots" / "latency.svg").mkdir()
    with pytest.raises(UserError, match=r"--svg .*latency\.svg: is a folder"):
        charts.write(found, tmp_path / "plots")


@pytest.mark.parametrize("script", ["conversion", "check_cost"])
def test_scripts_say_in_one_line_that_their_result_cannot_be_written(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Before they measure anything."""
    import importlib

    module = importlib.import_module(f"benchmarks.studies.{script}")
    networks = ["resnet18"] if script == "check_cost" else []
    monkeypatch.setattr("sys.argv", [script, *networks, "--json", "/nowhere/at/all.json"])
    assert terminal.script(script, module.main) == 2
    assert capsys.readouterr().err == f"{script}: --json /nowhere/at/all.json: no such folder /nowhere/at\n"
