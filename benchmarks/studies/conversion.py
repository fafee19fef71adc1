"""The cost of conversions, each figure together with its baseline, measured in one run.

    python -m benchmarks.studies.conversion --gigabytes 10 --folder /some/disk --json conversion.json

Files: a file of seeded noise is made on disk, converted to safetensors and to shards by `parity convert`, and inspected
by `parity inspect`, each in its own process. The memory of a process is the peak of its anonymous pages, less the pages
of the same process when everything is imported and nothing was read. Its time is compared with copying the bytes. Live
models: ResNet-50 goes from PyTorch into NNX, copied and shared; this is compared with copying its bytes into new
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine.process_memory import Peak
from parity.reports import terminal

if TYPE_CHECKING:
    import jax
    from flax import nnx

NAME = "benchmarks.studies.conversion"
LARGEST = 256 * 2**20  # bytes of the largest tensor
ALLOWED = 64e6  # in addition to 1.5 times the largest tensor
REPEATS = 9


def noise(path: Path, size: int, seed: int = 0) -> dict[str, list[int]]:
    """A safetensors file of `size` bytes of random bits, made piece by piece; the shapes of its tensors."""
    rng, shapes, at = np.random.default_rng(seed), {}, 0
    table: dict[str, Any] = {}
    while at < size:
        rows = min(int(rng.integers(1, LARGEST // 4096 + 1)) if shapes else LARGEST // 4096, (size - at) // 4096)
        if rows == 0:
            break
        name = f"layer{len(shapes)}.weight"
        shapes[name] = [rows, 1024]
        table[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [at, at + rows * 4096]}
        at += rows * 4096
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for rows, width in shapes.values():
            for begin in range(0, rows, 4096):
                block = rng.integers(0, 2**32, (min(4096, rows - begin), width), np.uint32)
                file.write(block.data)
    return shapes


def command(*arguments: object) -> tuple[float, int]:
    """Seconds and peak of anonymous memory of `parity …`."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "parity", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with Peak(process.pid) as peak:
        _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"parity {' '.join(map(str, arguments))}: {error.decode().strip()}")
    return time.perf_counter() - begin, peak.bytes


def copied(source: Path, path: Path) -> float:
    """Seconds to copy a file's bytes to another file, until they are on the disk."""
    begin = time.perf_counter()
    with source.open("rb") as file, path.open("wb") as out:
        shutil.copyfileobj(file, out, 16 * 2**20)
        out.flush()
        os.fsync(out.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return seconds


def files(folder: Path, size: int, shard: str) -> dict[str, Any]:
    """The figures of a large file."""
    big, small = folder / "noise.safetensors", folder / "small.safetensors"
    shapes = noise(big, size)
    noise(small, 4096)
    _, idle = command("convert", small, folder / "small-out.safetensors")
    inspect_seconds, inspect_peak = command("inspect", big)
    out, shards = folder / "out.safetensors", folder / "shards"
    result: dict[str, Any] = {
        "bytes": big.stat().st_size,
        "tensors": len(shapes),
        "largest_bytes": max(rows * width * 4 for rows, width in shapes.values()),
        "import_bytes": idle,
        "inspect_seconds": round(inspect_seconds, 3),
        "inspect_extra_bytes": max(0, inspect_peak - idle),
        "shard_size": shard,
    }
    copies = []
    for name, target, options in (("safetensors", out, ()), ("sharded", shards, ("--shard-size", shard))):
        copies.append(copied(big, folder / "copy"))
        seconds, peak = command("convert", big, target, *options)
        result[name] = {"seconds": round(seconds, 2), "extra_bytes": max(0, peak - idle)}
    result["copy_seconds"] = [round(seconds, 2) for seconds in copies]
    result["shards"] = len(list(shards.glob("*.safetensors")))
    source = _tensors(big)
    same = all(_equal(source, _tensors(file)) for file in (out, *shards.glob("*.safetensors")))
    result["every_bit_kept"] = same
    return result


def _tensors(path: Path) -> dict[str, Any]:
    from ports.weights.files import formats

    return formats.read(path, "safetensors", check=False).tree


def _equal(source: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether every bit is the same; the tensors are read one after the other."""

    def bits(array: Any) -> np.ndarray:
        return np.asarray(array).view(np.uint32)

    return bool(other) and all(np.array_equal(bits(array), bits(source[n])) for n, array in other.items())


def live(name: str = "resnet50") -> dict[str, Any]:
    """Milliseconds (median of 9) of moving a network from PyTorch into NNX, and of copying its bytes.

    Memory costs most of this time. `fresh` memory, as in a process that moves weights once, must come from the system
    page by page; `reused` memory comes from the run before.
    """
    import ports

    net, port = ports.create(name, "pytorch", seed=0), ports.create(name, "nnx", seed=None)
    arrays = list(ports.weights.read(net, copy=False).values())

    def moved(copy: bool) -> None:
        ports.weights.write(port, ports.weights.read(net, copy=False), copy=copy)

    ways: dict[str, Callable[[], Any]] = {
        "memcpy": lambda: [array.copy() for array in arrays],
        "copied": lambda: moved(True),
        "shared": lambda: moved(False),
    }
    result: dict[str, Any] = {"model": name, "bytes": sum(a.nbytes for a in arrays), "tensors": len(arrays)}
    for memory in ("reused", "fresh"):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        kept: list[Any] = []
        for _ in range(REPEATS + 1):
            for way, run in ways.items():  # in turn, so that other work of the machine affects all of them alike
                begin = time.perf_counter()
                made = run()
                seconds[way].append(time.perf_counter() - begin)
                kept += [made, _values(port)] if memory == "fresh" else []
        median = {way: statistics.median(found[1:]) * 1e3 for way, found in seconds.items()}
        result[memory] = {f"{way}_ms": round(ms, 2) for way, ms in median.items()}
        result[memory] |= {f"{way}_ratio": round(median[way] / median["memcpy"], 2) for way in ("copied", "shared")}
    return result


def _values(port: nnx.Module) -> list[jax.Array]:
    """The arrays of an NNX model: while somebody holds them, their memory is not reused."""
    import jax
    from flax import nnx

    return jax.tree.leaves(nnx.as_pure(nnx.state(port)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gigabytes", type=float, default=10, help="size of the file; the run needs three times as much on disk"
    )
    parser.add_argument("--shard-size", default="2GB")
    parser.add_argument("--folder", type=Path, help="folder for the files; by default the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    terminal.writable("--json", arguments.json)
    models = live()
    print(json.dumps(models))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        size = int(arguments.gigabytes * 1e9)
        if (free := shutil.disk_usage(folder).free) < 3.1 * size:
            got = f"got {free / 1e9:.0f} GB free, expected {3.1 * size / 1e9:.0f}"
            mend = "take a smaller --gigabytes, or another --folder"
            print(f"{NAME}: {folder}: {got}; {mend}", file=sys.stderr)
            return 2
        streamed = files(Path(folder), size, arguments.shard_size)
    print(json.dumps(streamed))
    if arguments.json:
        from parity.api import environment

        whole = {"schema": 1, "live": models, "files": streamed, "environment": environment()}
        terminal.write("--json", arguments.json, json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.script(NAME, main))
