"""What Orbax writes for us: a full disk is one line and leaves nothing, and names that no folder can have are kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats import same

from ports.weights import WeightsError, load, save
from ports.weights.files import formats

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for a few of the tensors."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200k", "parity-tests", str(disk)]
    try:
        done = subprocess.run(mounted, capture_output=True, check=False)
    except OSError:
        pytest.skip("no command `mount`")
    if done.returncode:
        pytest.skip("only root mounts a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["a{}", "a\\{}"], ids=["zarr", "ocdbt"])
def test_a_full_disk_is_one_line(name: str, full: Path, tmp_path: Path) -> None:
    """Of many tensors that are written at once several fail, some after the first error was told."""
    rng = np.random.default_rng(0)
    save(tmp_path / "w.npz", {name.format(i): rng.standard_normal(5000) for i in range(30)})
    command = [sys.executable, "-m", "parity", "convert", str(tmp_path / "w.npz"), str(full / "out"), "--to", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == f"parity: output {full / 'out'}: cannot be written: No space left on device\n"
    assert list(full.iterdir()) == []


INTERRUPTED = """
import os, signal, sys
import orbax.checkpoint as ocp
from parity.commands.cli import main
write, calls = ocp.type_handlers.NumpyHandler._open_and_write, []

async def interrupting(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return await write(*arguments, **options)

ocp.type_handlers.NumpyHandler._open_and_write = interrupting
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    """Orbax writes in threads of its own; all of them end before the folder is removed."""
    rng, folder = np.random.default_rng(0), tmp_path / "folder"
    save(tmp_path / "w.npz", {f"a{i}": rng.standard_normal(100_000) for i in range(30)})
    folder.mkdir()
    command = [sys.executable, "-c", INTERRUPTED, "convert", str(tmp_path / "w.npz"), str(folder / "out")]
    done = subprocess.run([*command, "--to", "torch"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 130
    assert done.stderr in ("", "parity: interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["a\\b", "\\", "a\\", "C:\\x", "a\\.b", "a\\\\b", "a/b", "..", "a\nb", "a.", "%41", "a*b?", "ä", "_METADATA"],
)
def test_every_name_comes_back(name: str, tmp_path: Path) -> None:
    tensors = {name: np.arange(3.0), "other": np.ones(2)}
    save(tmp_path / "out", tensors)
    assert same(load(tmp_path / "out"), tensors)
    foreign: Any = formats.foreign(formats.FORMATS["orbax"])
    assert foreign(tmp_path / "out") == []


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^'a\\ud800': is not valid Unicode"):
        save(tmp_path / "out", {"a\ud800": np.ones(2)})
    assert list(tmp_path.iterdir()) == []
