"""Export Linen's pair of a module and its variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from ports.export.flax import check, eval_keywords, save_inference

__all__ = ["check", "save"]


def save(
    net: tuple[nn.Module, Mapping[str, Any]],
    path: Path,
    batch: int | None,
    size: tuple[int, int, int],
    platforms: Sequence[str],
) -> None:
    module, variables = net
    keywords = eval_keywords(module)
    params = variables.get("params", {})
    save_inference(lambda images: module.apply(variables, images, **keywords), params, path, batch, size, platforms)
