"""Export a `torch.nn.Module` as `torch.export`'s program."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def check(platforms: Sequence[str]) -> None:
    """Do nothing: PyTorch needs no other package, and offers no choice of platforms."""


def save(net: nn.Module, path: Path, batch: int | None, size: tuple[int, int, int], platforms: Sequence[str]) -> None:
    first = next(net.parameters(), torch.zeros(()))
    images = torch.zeros((2 if batch is None else batch, *size), dtype=first.dtype, device=first.device)
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    modes = [(module, module.training) for module in net.modules()]
    try:
        exported = torch.export.export(net.eval(), (images,), dynamic_shapes=dynamic)
    finally:
        for module, training in modes:
            module.training = training
    exported.example_inputs = None  # their numbers would be stored, although only their shape matters
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # names of folders on this machine
    with path.open("wb") as file:  # by its temporary name PyTorch would warn about the suffix
        torch.export.save(exported, file)


def load(path: Path) -> Callable[[Tensor], Tensor | tuple[Tensor, ...]]:
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/models/model.json") for name in archive.namelist()):
            raise ValueError("a zip without models/model.json")
    with warnings.catch_warnings():  # PyTorch 2.11 warns of its own reader
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        with torch.no_grad():
            return module(images)

    return run
