"""Shared fixtures: the folder of real data, where there is one, and quick compilation."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each, or they wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# What XLA has compiled once in a session it takes from a folder: many tests, and the commands that they run, share
# small networks. Set here, before a test imports jax.
COMPILED = tempfile.TemporaryDirectory(prefix="parity-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go() -> Iterator[None]:
    """A process with the programs of a thousand tests in it is slow to look through for garbage."""
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights and images that are not part of this project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder ../shared/data: {folder}")
    return folder


@pytest.fixture
def quick() -> Iterator[None]:
    """XLA without its optimisations, for small networks that run once: compiling them is all the wait."""
    from networks import quick_compilation

    with quick_compilation():
        yield
