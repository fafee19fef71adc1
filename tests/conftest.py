"""Shared fixtures: the folder of real data, where there is one, and quick compilation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


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
