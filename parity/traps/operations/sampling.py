"""Known mistakes in sampling an image at the points of a grid. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parity.traps.planting import Values, argument, with_argument
from parity.traps.trap import Trap

SAMPLE, GRID = ("grid_sample",), ("affine_grid",)
SAMPLE_PAGES = "torch.nn.functional.grid_sample, jax.scipy.ndimage.map_coordinates"


def _aligned(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Align the corners where PyTorch does not, or the other way round."""
    at = 2 if function.__name__ == "affine_grid" else 4
    return with_argument(at, "align_corners", False, lambda value: not value)(function, args, kw)


def _exchanged(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Tensor | None:
    """Take the first number of a point for the row."""
    grid = argument(args, kw, 1, "grid", None)
    if grid.shape[-1] != 2:
        return None
    rest = {name: value for name, value in kw.items() if name not in ("input", "grid")}
    return function(argument(args, kw, 0, "input", None), grid.flip(-1), *args[2:], **rest)


SAMPLING = (
    Trap(
        "sample-corners",
        "between",
        SAMPLE + GRID,
        _aligned,
        "the points of the grid stand elsewhere: align_corners is the other way round",
        "with align_corners=False −1 and 1 are the edges of the image, and with True the centres of its outer pixels",
        "torch.nn.functional.grid_sample, affine_grid",
    ),
    Trap(
        "sample-outside",
        "between",
        SAMPLE,
        with_argument(3, "padding_mode", "zeros", lambda mode: {"zeros": "border", "border": "zeros"}.get(mode, mode)),
        "points outside of the image give something else: its border where PyTorch's give zero, or the other way round",
        "map_coordinates(mode='constant') is padding_mode='zeros', and 'nearest' is 'border'",
        SAMPLE_PAGES,
    ),
    Trap(
        "sample-nearest",
        "between",
        SAMPLE,
        with_argument(2, "mode", "bilinear", lambda mode: {"bilinear": "nearest"}.get(mode, mode)),
        "each point gets the nearest pixel; PyTorch's gets a mean of four",
        "pass order=1 to map_coordinates",
        SAMPLE_PAGES,
    ),
    Trap(
        "sample-axes-exchanged",
        "between",
        SAMPLE,
        _exchanged,
        "the grid holds rows before columns; PyTorch's holds columns (x) first",
        "take the last number of a point for the row; map_coordinates takes rows first",
        SAMPLE_PAGES,
    ),
)
