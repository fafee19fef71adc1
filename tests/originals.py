"""The libraries that the networks are held against, where they are installed; a test without them is skipped."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

import pytest
import torch

# What torchvision's compiled part defines. A wheel for CUDA does not load it beside PyTorch for CPUs, and torchvision
# cannot be imported while PyTorch does not know these names. No network here calls them.
OPERATORS = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
OPERATORS += [f"_{name}_backward" for name in OPERATORS[2:]]


def imported(name: str) -> Any:
    """Return a library, or skip the test; what it warns of is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def torchvision() -> Any:
    """Return torchvision, or skip the test."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return imported("torchvision")
    except RuntimeError:
        _declared()
        return imported("torchvision")


def transformers() -> Any:
    """Return transformers, or skip the test; it imports torchvision where that is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        torchvision()
    return imported("transformers")


@functools.cache
def _declared() -> torch.library.Library:
    """Let PyTorch know torchvision's operators by name. They stay known as long as this result lives."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library
