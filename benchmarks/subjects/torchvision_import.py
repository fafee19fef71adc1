"""Imports torchvision beside a PyTorch for CPUs.

The compiled part of a wheel for CUDA does not load there, and torchvision raises at its import as long as PyTorch does
not know the operators that this part defines. No network here calls them, so it is enough to declare their names.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

OPERATORS = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
OPERATORS += [f"_{name}_backward" for name in OPERATORS[2:]]


def torchvision() -> Any:
    """Return torchvision.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        _declared()
        return importlib.import_module("torchvision")


@functools.cache
def _declared() -> torch.library.Library:
    """Let PyTorch know torchvision's operators by name. They stay known as long as this result lives."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library
