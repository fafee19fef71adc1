"""Sources that change while they are read, and paths that are not regular files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats import suffix, written

from parity.commands.cli import main
from ports.weights import WeightsError, convert, load, open_checkpoint, save
from ports.weights.files import budget, formats
from ports.weights.files.formats import FORMATS
from ports.weights.files.source import OpenFile, Source
from ports.weights.form import lazy

SMALL = {"a.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "a.bias": np.ones(3, np.float16)}
OTHER = {name: array + 1 for name, array in SMALL.items()}


def during(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Run `change` between the reading of the source's header and the writing of the output."""
    write = formats.write

    def changed(*args: Any, **options: Any) -> None:
        change()
        write(*args, **options)

    monkeypatch.setattr(formats, "write", changed)


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def rewrite(path: Path, at: int = -40) -> None:
    """Write into a file in place, and give it another time whatever the clock's resolution is."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def refused(tmp_path: Path, path: Path, capsys: Any, said: str, *options: str) -> None:
    assert main(["convert", str(path), str(tmp_path / "out.npz"), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0], lines[0]
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_a_source_that_is_rewritten_in_place_is_refused(
    row: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / f"w{suffix(row)}", SMALL, row)
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    during(monkeypatch, lambda: rewrite(largest))
    refused(tmp_path, path, capsys, "changed while it was read", "--source-format", row.name)


@pytest.mark.parametrize("name", ["safetensors", "sharded"])
def test_a_source_that_is_truncated_is_an_error_and_no_signal(name: str, tmp_path: Path) -> None:
    """In a process of its own: a memory map would end it by SIGBUS."""
    large = {"a.weight": np.arange(1 << 21, dtype=np.float32)}
    path = written(tmp_path / f"w{suffix(FORMATS[name])}", large, FORMATS[name])
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    script = (
        "import sys\nfrom parity.commands.cli import main\nfrom ports.weights.files import formats\n"
        "write = formats.write\n"
        "def changed(*a, **k):\n    open(sys.argv[3], 'r+b').truncate(4096)\n    write(*a, **k)\n"
        "formats.write = changed\nsys.exit(main(['convert', *sys.argv[1:3], '--source-format', sys.argv[4]]))"
    )
    arguments = [str(path), str(tmp_path / "out.npz"), str(largest), name]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "changed while it was read" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_a_source_that_is_replaced_is_read_to_its_end_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output holds the old weights and the old file's digest."""
    path = tmp_path / "w.safetensors"
    save(path, SMALL)
    save(tmp_path / "new.safetensors", OTHER)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    during(monkeypatch, lambda: (tmp_path / "new.safetensors").replace(path))
    convert(path, tmp_path / "out.npz")
    content = formats.read(tmp_path / "out.npz")
    assert content.metadata["source_sha256"] == digest
    assert all(np.array_equal(content.tree[name], array) for name, array in SMALL.items())


def test_a_folder_that_is_replaced_is_refused(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library reads an Orbax folder file by file: old and new would be mixed."""
    path = written(tmp_path / "w", SMALL, FORMATS["orbax"])
    written(tmp_path / "v", OTHER, FORMATS["orbax"])

    def change() -> None:
        shutil.rmtree(path)
        (tmp_path / "v").rename(path)

    during(monkeypatch, change)
    refused(tmp_path, path, capsys, "changed while it was read")


def test_load_and_inspect_refuse_a_changed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save(path, SMALL)
    read = OpenFile.read_into

    def changed(self: OpenFile, buffer: memoryview, at: int) -> None:
        read(self, buffer, at)
        if at >= 8:
            rewrite(path)

    monkeypatch.setattr(OpenFile, "read_into", changed)
    with pytest.raises(WeightsError, match=r"changed while it was read|checksum"):
        load(path)
    assert main(["inspect", str(path)]) == 2


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """What a reader does itself, and what others do beside it, is no change."""
    path = tmp_path / "w.safetensors"
    save(path, SMALL)
    source = formats.read(path).source
    assert source is not None
    path.chmod(0o444)
    os.link(path, tmp_path / "same.safetensors")
    path.read_bytes()
    source.unchanged()


@pytest.mark.parametrize("suffixes", [row.suffixes[0] for row in FORMATS.values() if row.suffixes])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_only_regular_files_are_read(kind: str, suffixes: str, tmp_path: Path, capsys: Any) -> None:
    """Each is a link, as somebody would smuggle it in: a pipe waits for ever, a device has no end."""
    target, path = tmp_path / "target", tmp_path / f"w{suffixes}"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(target)
        elif kind == "device":
            target = Path("/dev/zero")
        else:
            server.bind(str(target))
        path.symlink_to(target)
        refused(tmp_path, path, capsys, f"is a {'named pipe' if kind == 'pipe' else kind}, expected a regular file")
        assert main(["inspect", str(path)]) == 2


@pytest.mark.parametrize("name", ["sharded", "orbax"])
def test_a_pipe_within_a_folder_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / "w", SMALL, FORMATS[name])
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    largest.unlink()
    os.mkfifo(largest)
    refused(tmp_path, path, capsys, "")


def test_a_shard_may_be_a_link_out_of_the_folder(tmp_path: Path, capsys: Any) -> None:
    """Caches of downloads are built so: the file is read, and a note says where it leads."""
    path = written(tmp_path / "w", SMALL, FORMATS["sharded"])
    shard = next(path.glob("*.safetensors"))
    (tmp_path / "blobs").mkdir()
    real = shard.rename(tmp_path / "blobs" / "0a1b")
    shard.symlink_to(real)
    assert main(["convert", str(path), str(tmp_path / "out.npz")]) == 0
    assert f"leaves the folder; {real} was read" in capsys.readouterr().err


def test_a_link_out_of_an_orbax_folder_is_refused(tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / "w", SMALL, FORMATS["orbax"])
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    largest.symlink_to(largest.rename(tmp_path / "elsewhere"))
    refused(tmp_path, path, capsys, "is a link that leaves")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(name: str, capsys: Any) -> None:
    for command in (["inspect", name], ["convert", name, "out.npz"]):
        assert main(command) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_tensors_of_a_file_stay_there_until_they_are_used(tmp_path: Path) -> None:
    """Transposed for Flax or not, a tensor of safetensors is read when it is asked for."""
    path = tmp_path / "w.safetensors"
    save(path, {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4)})
    held = open_checkpoint(path, bare=True).weights["a.weight"]
    assert isinstance(held, lazy.Lazy)
    [turned] = lazy.mapped(lambda arrays: (arrays[0].T,), (held,))
    assert isinstance(turned, lazy.Lazy)
    assert turned.shape == (4, 3)
    assert np.array_equal(turned, np.arange(12).reshape(3, 4).T)
    [whole] = lazy.mapped(lambda arrays: (arrays[0],), (held,))
    assert whole is held


def test_pieces_are_the_bytes_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ports.weights.files.source.PIECE", 7)
    path = tmp_path / "w.safetensors"
    array = np.arange(40, dtype=np.int16).reshape(5, 8)
    save(path, {"a": array, "b": array.T})
    tree = formats.read(path).tree
    for name, expected in (("a", array), ("b", array.T)):
        pieces = [bytes(piece) for piece in lazy.pieces(tree[name])]
        assert len(pieces) > 1
        assert b"".join(pieces) == b"".join(bytes(p) for p in lazy.pieces(expected)) == expected.tobytes()


def test_the_budget_is_the_smallest_of_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's free memory, the control group's, the process' own: of each limit half, and 20 times the file."""
    path = tmp_path / "w.npz"
    save(path, SMALL)
    source = Source(path)
    expected = budget.TIMES * path.stat().st_size + budget.BASE
    assert source.budget.limit == expected
    for name, left in (("_of_container", 1000), ("_of_process", 500)):
        monkeypatch.setattr(budget, name, lambda left=left: iter((left,)))
        assert Source(path).budget.limit == left // 2
        with pytest.raises(WeightsError, match=f"limit {left // 2} "):
            load(path)
    assert len(load(path, max_memory=10_000)) == 2
    with pytest.raises(WeightsError, match=r"max_memory: got 0"):
        load(path, max_memory=0)


def test_limits_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2: the smallest limit from the group up; the cache of files does not count as used."""
    monkeypatch.setattr(budget, "CGROUPS", tmp_path)
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("5000\n")
    (inner.parent / "memory.current").write_text("3000\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 400\n")
    monkeypatch.setattr(budget, "groups", lambda: ["0::/outer/inner"])
    assert list(budget._of_container()) == [2400]
    assert list(budget._of_process()) == [] or min(budget._of_process()) > 0


def test_max_memory_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "w.npz"
    save(path, SMALL)
    assert main(["inspect", str(path), "--max-memory", "100"]) == 2
    assert "limit 100 (--max-memory)" in capsys.readouterr().err
    assert main(["inspect", str(path), "--max-memory", "1MB"]) == 0
    assert main(["convert", str(path), str(tmp_path / "o.npz"), "--max-memory", "lots"]) == 2
    assert "--max-memory: got 'lots'" in capsys.readouterr().err


def test_a_header_that_would_become_gigabytes(tmp_path: Path) -> None:
    """A hundred megabytes of empty objects are 2.4 GB of Python's."""
    text = json.dumps({"__metadata__": {}}).encode() + b" " * 100
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(WeightsError, match=r"its header would take"):
        load(path, max_memory=1000)
