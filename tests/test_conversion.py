"""The benchmark of conversions, on a small file: it streams, and says what it measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine.process_memory import Peak
from benchmarks.studies import conversion

# Above the file's largest tensor, which the bound of the streaming claim is about.
SIZE = 300 * 2**20


@pytest.mark.nightly
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


# A process of its own: this one may give back memory of earlier tests at any moment.
HOLDER = """
print("begun", flush=True)
input()
held = b"x" * (64 * 2**20)
print("held", flush=True)
input()
"""


def test_memory_that_a_block_takes_is_seen() -> None:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **pipes) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "begun\n"
        with Peak(child.pid) as peak:
            before = peak.bytes
            print(file=child.stdin, flush=True)
            assert child.stdout.readline() == "held\n"
        assert peak.bytes - before > 60 * 2**20
        print(file=child.stdin, flush=True)
