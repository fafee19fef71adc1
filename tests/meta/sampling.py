"""Mistakes in sampling an image at the points of a grid, planted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from .planted import Case, between

BLOCK = "block"
# A map of every image: it turns the image, and moves it partly out of sight.
MAP = ((0.9, -0.4, 0.2), (0.3, 1.1, -0.3))


def torch_sampled(**settings: Any) -> Any:
    def call(x: torch.Tensor) -> torch.Tensor:
        theta = torch.tensor(MAP, dtype=x.dtype).expand(len(x), 2, 3)
        return F.grid_sample(
            x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False, **settings
        )

    return call


def jax_sampled(
    grid_corners: bool = False,
    corners: bool = False,
    outside: str = "constant",
    order: int = 1,
    rows_first: bool = False,
) -> Any:
    """The same with `map_coordinates`, which takes rows first and counts pixels from the centre of the first one."""

    def points(n: int) -> Any:
        return jnp.linspace(-1, 1, n) if grid_corners else (2 * jnp.arange(n) + 1) / n - 1

    def pixels(at: Any, n: int) -> Any:
        return (at + 1) / 2 * (n - 1) if corners else ((at + 1) * n - 1) / 2

    def call(x: Any) -> Any:
        height, width = x.shape[1:3]
        columns, rows = jnp.meshgrid(points(width), points(height))
        column, row = (a * columns + b * rows + c for a, b, c in MAP)
        column, row = (row, column) if rows_first else (column, row)
        at = [pixels(row, height), pixels(column, width)]

        def one(image: Any) -> Any:
            return jax.scipy.ndimage.map_coordinates(image, at, order=order, mode=outside)

        return jax.vmap(jax.vmap(one, -1, -1))(x)

    return call


SAMPLING = (
    Case("sample-corners", between(torch_sampled(), jax_sampled(grid_corners=True)), BLOCK),
    Case("sample-corners", between(torch_sampled(), jax_sampled(corners=True)), BLOCK),
    Case("sample-corners", between(torch_sampled(), jax_sampled(grid_corners=True, corners=True)), BLOCK),
    Case("sample-outside", between(torch_sampled(), jax_sampled(outside="nearest")), BLOCK),
    Case("sample-outside", between(torch_sampled(padding_mode="border"), jax_sampled()), BLOCK),
    Case("sample-nearest", between(torch_sampled(), jax_sampled(order=0)), BLOCK),
    Case("sample-axes-exchanged", between(torch_sampled(), jax_sampled(rows_first=True)), BLOCK),
)
