"""Export an `nnx.Module`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from ports.export.flax import check, eval_keywords, save_inference

__all__ = ["check", "save"]


def save(net: nnx.Module, path: Path, batch: int | None, size: tuple[int, int, int], platforms: Sequence[str]) -> None:
    keywords = eval_keywords(net)
    twin = nnx.clone(net)  # a view with its own mode; the arrays are shared
    twin.eval()
    save_inference(lambda images: twin(images, **keywords), nnx.state(net, nnx.Param), path, batch, size, platforms)
