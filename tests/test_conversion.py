"""The benchmark of conversions, on a small file: it streams, and says what it measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.machine.process_memory import Peak
from benchmarks.studies import conversion

# Above the file's largest tensor, which the bound of the streaming claim is about.
SIZE = 300 * 2**20


def test_a_file_is_streamed(tmp_path: Path) -> None:
    found = conversion.files(tmp_path, SIZE, "100MB")
    assert found["every_bit_kept"]
    assert found["shards"] >= 2
    allowed = 1.5 * found["largest_bytes"] + conversion.ALLOWED
    for name in ("safetensors", "sharded"):
        assert 0 <= found[name]["extra_bytes"] < allowed
    assert found["inspect_extra_bytes"] < conversion.ALLOWED


def test_live_weights_are_timed_beside_a_copy() -> None:
    found = conversion.live("cifar_resnet20")
    for memory in ("fresh", "reused"):
        assert min(found[memory][f"{way}_ms"] for way in ("memcpy", "copied", "shared")) > 0
        assert found[memory]["copied_ratio"] > 0


def test_memory_that_a_block_takes_is_seen() -> None:
    with Peak() as peak:
        before = peak.bytes
        held = bytearray(b"x") * (64 * 2**20)
        assert held[-1] == ord("x")
    assert peak.bytes - before > 60 * 2**20
