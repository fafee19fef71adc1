"""The libraries that the networks are held against, where they are installed; a test without them is skipped."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest

from benchmarks.subjects import torchvision_import


def imported(name: str) -> Any:
    """Return a library, or skip the test; what it warns of is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def torchvision() -> Any:
    """Return torchvision, or skip the test."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision_import.torchvision()


def transformers() -> Any:
    """Return transformers, or skip the test; it imports torchvision where that is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        torchvision()
    return imported("transformers")
