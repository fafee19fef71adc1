"""Winograd's minimal filtering for windows of 3 by 3 pixels: F(2x2, 3x3) of Lavin and Gray 2016, section 4.1.

A tile of 2 by 2 outputs reads 4 by 4 inputs. With sums of the inputs (`of_inputs`, Bᵀ in the paper) and of the window's
weights (`of_weights`, G) it needs 16 products instead of 36; sums of these products are the outputs (`to_outputs`, Aᵀ).
Over all tiles and channels each of the 16 is a product of matrices, which a CPU does at its peak. All sums are of two
to four numbers with factors of ±1 and ½, so rounding is the same as in the usual order. In bfloat16 the sums would be
rounded before they are multiplied, so `can` says no. An inf in the input turns every output of its tile into NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# With fewer than these it is slower: tiles (more of them if the images are so small that there is another way),
# channels, and products at each of the 16 places.
TILES, SMALL_TILES = 48, 128
CHANNELS = 32
PRODUCTS = 2**20

Pads = tuple[tuple[int, int], tuple[int, int]]  # before and after, of height and width


def of_inputs(d: Sequence[Any]) -> list[Any]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def of_weights(g: Sequence[Any]) -> list[Any]:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def to_outputs(m: Sequence[Any]) -> list[Any]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def both_ways(sums: Callable[[Sequence[Any]], list[Any]], square: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The sums down every column of a square of arrays, then along every row of what this gives."""
    columns = [sums(column) for column in zip(*square, strict=True)]
    return [sums(row) for row in zip(*columns, strict=True)]


def can(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, dilation: Sequence[int]) -> bool:
    """Whether a convolution is one that this module can do."""
    window, others = tuple(kernel.shape[:2]), (tuple(strides), tuple(dilation))
    known = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
    back = all(0 <= pad <= 2 for way in pads for pad in way)  # the gradient's are 2 less these
    return window == (3, 3) and others == ((1, 1), (1, 1)) and known and back and min(extent(x, pads)) > 1


def pays(x: jax.Array, kernel: jax.Array, pads: Pads, small: bool) -> bool:
    """Whether it is large enough for this to be faster. An exported program may not know the number of images."""
    height, width = extent(x, pads)
    tiles = (x.shape[0] if isinstance(x.shape[0], int) else 1) * -(-height // 2) * -(-width // 2)
    channels, out = kernel.shape[2:]
    enough = tiles >= (SMALL_TILES if small else TILES) and min(channels, out) >= CHANNELS
    return enough and tiles * channels * out >= PRODUCTS


def extent(x: jax.Array, pads: Pads) -> tuple[int, int]:
    """Height and width of the outputs."""
    height, width = (size + sum(pad) - 2 for size, pad in zip(x.shape[1:3], pads, strict=True))
    return height, width


def filtered(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 _ _"],
    pads: Pads,
    precision: jax.lax.PrecisionLike,
    side: int = 0,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """The convolution; `side` says which of the window's two kinds of channels belongs to `x`."""
    height, width = extent(x, pads)
    rows, columns = -(-height // 2), -(-width // 2)
    (top, bottom), (left, right) = pads
    x = jnp.pad(x, ((0, 0), (top, bottom + 2 * rows - height), (left, right + 2 * columns - width), (0, 0)))
    tile = [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)] for i in range(4)]
    weights = both_ways(of_weights, [[kernel[i, j] for j in range(3)] for i in range(3)])
    products = [
        [jax.lax.dot_general(v, u, (((3,), (side,)), ((), ())), precision) for v, u in zip(*pair, strict=True)]
        for pair in zip(both_ways(of_inputs, tile), weights, strict=True)
    ]
    (a, b), (c, d) = both_ways(to_outputs, products)
    y = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2)
    return y.reshape(x.shape[0], 2 * rows, 2 * columns, -1)[:, :height, :width]


def usual(x: jax.Array, kernel: jax.Array, pads: Pads, precision: jax.lax.PrecisionLike) -> jax.Array:
    """XLA's convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=numbers, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels out_channels"],
    pads: Pads,
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """A convolution with a stride of 1. XLA computes its filter's gradient: here its operands would be transposed."""
    return filtered(x, kernel, pads, precision)


def _forward(
    x: jax.Array, kernel: jax.Array, pads: Pads, precision: jax.lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, pads, precision), (x, kernel)


def _backward(
    pads: Pads, precision: jax.lax.PrecisionLike, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (top, bottom), (left, right) = pads
    back = ((2 - top, 2 - bottom), (2 - left, 2 - right))
    to_x = filtered(gradient, kernel[::-1, ::-1], back, precision, side=1)
    (to_kernel,) = jax.vjp(lambda kernel: usual(x, kernel, pads, precision), kernel)[1](gradient)
    return to_x, to_kernel


convolve.defvjp(_forward, _backward)
