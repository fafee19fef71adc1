"""Estimates whether there is enough memory for a check, so that a long run does not die halfway."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import psutil
import torch

from ports import families
from ports.building import pytorch
from ports.errors import UserError
from ports.weights.files.budget import usable

# Peak memory of a check: bytes of the frameworks, factor of the activations of a batch, factor of the weights.
# (ResNet-50 with two images: 6.1 GB measured, 6.8 GB by these.)
FRAMEWORKS = 1.0e9
ACTIVATIONS = 8
WEIGHTS = 13

# From this size of a process (bytes) on, giving memory back is worth the time that the search for it takes.
WORTHWHILE = 2.5e9


def required(spec: Any, batch: int, size: tuple[int, ...]) -> float:
    """Bytes that the check of a network takes in float64."""
    elements = 0

    def count(_: torch.nn.Module, __: object, output: object) -> None:
        nonlocal elements
        elements += output.numel() if isinstance(output, torch.Tensor) else 0

    net = pytorch.skeleton(spec).eval()
    for module in net.modules():
        if not isinstance(module, torch.nn.Sequential):
            module.register_forward_hook(count)
    net(*pytorch.meta_inputs(spec, 1, size))
    weights = sum(p.numel() for p in net.parameters())
    return FRAMEWORKS + 8 * (ACTIVATIONS * elements * batch + WEIGHTS * weights)


def require(spec: Any, batch: int, size: tuple[int, ...]) -> None:
    """Raises where there is not enough memory.

    Raises:
        UserError: says how much is needed, how much is free, and what to do.
    """
    need, free = required(spec, batch, size), usable()
    if need > free:
        what = "images" if families.takes_images(spec) else "inputs"
        smaller = "--reduced, or a smaller network" if families.reduced(spec) != spec else "or a smaller network"
        raise UserError(
            f"{spec.name}: {batch} {what} of {'x'.join(map(str, size))} need about {need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; take a smaller --batch or --image-size, {smaller}"
        )


def release() -> None:
    """Give unused memory back to the system: the C library keeps the memory of large arrays.

    A process below `WORTHWHILE` has little to give back, and the search takes longer than the check of a small network.
    """
    if psutil.Process().memory_info().rss < WORTHWHILE:
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
