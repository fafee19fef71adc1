"""Reads files that a coverage-guided fuzzer makes: `python tests/fuzzed.py safetensors --seconds 60`.

Needs atheris, which is no dependency of this package. The fuzzer begins with a whole file of the format and changes it
so that it reaches code which no file before has reached. Any exception but `UserError` ends it, and so does a read that
takes longer than `SLOW` seconds, or memory above `MEMORY` times the file's bytes besides `BASE`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SLOW, MEMORY, BASE = 5.0, 20, 64 * 2**20


def content() -> Any:
    """A small tree with every kind of tensor."""
    from ports.weights.formats import Content

    rng = np.random.default_rng(0)
    tree = {
        "conv1.weight": rng.standard_normal((2, 3, 3, 3)).astype(np.float32),
        "bn.num_batches_tracked": np.array(7),
        "empty": np.zeros((0, 4), np.float16),
        "flag": np.array([True, False]),
    }
    return Content(tree, {"source": "a file"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        raise SystemExit("fuzzed.py: needs atheris, which is not installed; pip install atheris") from None
    with atheris.instrument_imports(include=["ports.weights"]):
        from ports.errors import UserError
        from ports.weights import formats
        from ports.weights.formats import msgpack, npz, safetensors, sharded, torchfile  # noqa: F401
    row = formats.FORMATS[arguments.format]
    folder = Path(tempfile.mkdtemp(prefix="fuzzed-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    whole = folder / f"whole{row.suffixes[0] if row.suffixes else ''}"
    formats.write(whole, content(), row)
    changed = next(whole.glob("*.index.json")) if row.folder else whole  # of shards the index, which names the others
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(changed.read_bytes())
    place = changed if row.folder else folder / f"file{row.suffixes[0]}"
    seen = {"reads": 0, "refused": 0, "slowest": 0.0, "most": 0.0}
    tracemalloc.start()

    def once(data: bytes) -> None:
        place.write_bytes(data)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        begin = time.perf_counter()
        seen["reads"] += 1
        try:
            formats.read(whole if row.folder else place, row.name)
        except UserError:
            seen["refused"] += 1
        took, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
        seen["slowest"] = max(seen["slowest"], took)
        seen["most"] = max(seen["most"], peak - before)
        if took > SLOW:
            raise RuntimeError(f"a read took {took:.1f} s")
        if peak - before > MEMORY * len(data) + BASE:
            raise RuntimeError(f"a file of {len(data)} bytes took {peak - before} bytes of memory")

    options = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-timeout=10", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", "-max_len=8192", str(corpus)], once)
    import atexit

    @atexit.register
    def _() -> None:
        print({"format": row.name, **seen}, flush=True)

    atheris.Fuzz()


if __name__ == "__main__":
    main()
