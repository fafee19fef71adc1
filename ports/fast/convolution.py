"""XLA's convolution, computed on CPUs in ways that XLA's own CPU backend does not find.

Two thirds of ResNet-50's convolutions have a window of one pixel. They are products of matrices, which Eigen and
YNNPACK compute faster than the same convolution. In a training step XLA's CPU backend also transposes the large operand
of a filter's gradient in memory, and recomputes the elementwise operations that led to it. Here the operand with fewer
channels is transposed (`product`), or one that is already computed (`kept`). A window of 3 by 3 needs less than half of
its products (`winograd`). Small images, as in ResNet-18's last stage at 64 or 96 pixels, are slow with larger windows,
too. If the window has more pixels than the image, XLA exchanges the two, and has no fast code for the result
(`unrolled`). It also has no fast code for the gradients of convolutions in groups, as in ResNeXt, which take a hundred
times as long as the gradients of a few convolutions without groups (`grouped`). `python -m benchmarks resnet50 --batch
8 --subjects linen,linen-fast` measures the gain.

`product` and `winograd.convolve` have gradients of their own, and so no forward mode (`jax.jvp`, `jax.jacfwd`,
`jax.hessian`): use the plain network for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ports.errors import UserError
from ports.fast import winograd

FEW = 6  # windows: an image of fewer is small
PARTS, WIDE = 8, 32  # of a convolution in groups: at most so many, each of at least so many channels

UNDERSTOOD = ("dimension_numbers", "feature_group_count", "precision", "lhs_dilation", "rhs_dilation")

Padding = str | Sequence[tuple[int, int]]  # a word, or pixels before and after of each axis

PIXELS = ((0, 1, 2), (0, 1, 2))  # batch, height and width, summed over


def conv_general_dilated(
    x: Float[Array, "batch *size channels"],
    kernel: Float[Array, "*window channels_per_group out_channels"],
    strides: Sequence[int],
    padding: Padding,
    **options: Any,
) -> Float[Array, "batch *out_size out_channels"]:
    """`jax.lax.conv_general_dilated` as Flax's layers call it: uses `on_cpu` on CPUs, and XLA elsewhere.

    Raises:
        UserError: forward mode is asked for.
    """
    fast = partial(on_cpu, strides=strides, padding=padding, **options)
    usual = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    others = {name for name, value in options.items() if value is not None} - set(UNDERSTOOD)
    if others or x.ndim != 4 or any(apart != 1 for apart in options.get("lhs_dilation") or ()):
        return usual(x, kernel)
    try:
        return jax.lax.platform_dependent(x, kernel, cpu=fast, default=usual)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        said = "ports.fast has no forward mode (jvp, jacfwd, hessian): use the plain network for it"
        raise UserError(said) from error


def on_cpu(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "window_height window_width channels_per_group out_channels"],
    strides: Sequence[int],
    padding: Padding,
    *,
    dimension_numbers: jax.lax.ConvDimensionNumbers | tuple[str, str, str] | None = None,
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """Convolve (batch, height, width, channels) without dilating the input."""
    if feature_group_count > 1:
        each = partial(
            on_cpu,
            strides=strides,
            padding=padding,
            dimension_numbers=dimension_numbers,
            precision=precision,
            **options,
        )
        return grouped(x, kernel, feature_group_count, each)
    if kernel.shape[:2] == (1, 1) and not _padded(padding):
        return product(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)
    dilation = options.get("rhs_dilation") or (1, 1)
    pads = explicit(padding, x, kernel, strides, dilation)
    small = x.shape[1] * x.shape[2] < FEW * kernel.shape[0] * kernel.shape[1]
    if winograd.can(x, kernel, strides, pads, dilation) and winograd.pays(x, kernel, pads, small):
        return winograd.convolve(kept(x), kernel, pads, precision)
    if small:
        return unrolled(x, kernel, strides, pads, dilation, precision)
    return jax.lax.conv_general_dilated(
        kept(x), kernel, strides, padding, dimension_numbers=dimension_numbers, precision=precision, **options
    )


def _padded(padding: Padding) -> bool:
    """Whether a window of one pixel would see padding: words never pad it."""
    return not isinstance(padding, str) and any(any(pad) for pad in padding)


def explicit(
    padding: Padding, x: jax.Array, kernel: jax.Array, strides: Sequence[int], dilation: Sequence[int]
) -> winograd.Pads:
    """The rows and columns of zeros before and after, for a padding that may be a word."""
    if isinstance(padding, str):
        windows = [(size - 1) * apart + 1 for size, apart in zip(kernel.shape[:2], dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(x.shape[1:3], windows, strides, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def grouped(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "window_height window_width channels_per_group out_channels"],
    groups: int,
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
) -> Float[Array, "batch out_height out_width out_channels"]:
    """A few convolutions without groups, whose filters are zero where a group's channels meet another's output.

    An inf or NaN reaches what else is computed in its part.
    """
    channels = x.shape[-1]
    parts = max(n for n in range(1, PARTS + 1) if groups % n == 0 and (n == 1 or channels // n >= WIDE))
    together = groups // parts  # groups in a part
    own = jnp.eye(together, dtype=bool)[:, None, :, None]
    done = []
    for images, filters in zip(jnp.split(x, parts, -1), jnp.split(kernel, parts, -1), strict=True):
        window, (inputs, outputs) = filters.shape[:2], filters.shape[2:]
        apart = filters.reshape(*window, 1, inputs, together, outputs // together)
        done.append(convolve(images, jnp.where(own, apart, 0).reshape(*window, together * inputs, outputs)))
    return jnp.concatenate(done, axis=-1)


def unrolled(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "window_height window_width channels out_channels"],
    strides: Sequence[int],
    pads: winograd.Pads,
    dilation: Sequence[int],
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """For small images: write out the pixels of every window, for one product of matrices."""
    extents = [(size - 1) * apart + 1 for size, apart in zip(kernel.shape[:2], dilation, strict=True)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (
        [slice(i * apart, i * apart + max(0, size - extent + 1), stride) for i in range(window)]
        for size, window, apart, extent, stride in zip(
            x.shape[1:3], kernel.shape[:2], dilation, extents, strides, strict=True
        )
    )
    places = jnp.concatenate([x[:, row, column] for row in rows for column in columns], axis=-1)
    return product(places, kernel.reshape(-1, kernel.shape[-1]), precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "channels out_channels"],
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "batch height width out_channels"]:
    """A window of one pixel. In its gradient XLA transposes the first operand in memory: here the smaller one."""
    return jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision)


def _product_forward(
    x: jax.Array, kernel: jax.Array, precision: jax.lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel, precision), (x, kernel)


def _product_backward(
    precision: jax.lax.PrecisionLike, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    to_x = jax.lax.dot_general(gradient, kernel, (((3,), (1,)), ((), ())), precision)
    first, second = (x, gradient) if x.shape[-1] < gradient.shape[-1] else (gradient, x)
    to_kernel = jax.lax.dot_general(first, second, (PIXELS, ((), ())), precision)
    return to_x, to_kernel if first is x else to_kernel.T


product.defvjp(_product_forward, _product_backward)


@jax.custom_jvp
def kept(x: Array) -> Array:
    """The same array; for gradients, one that XLA computes only once, because it does not look into `cond`.

    `jax.lax.optimization_barrier` does not have this effect: the profile is the same with and without it.
    """
    return x


@kept.defjvp
def _kept_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    first = x[(0,) * x.ndim]
    # Both branches give x; the second only looks different.
    return jax.lax.cond(first == first, lambda x: x, lambda x: jnp.where(x == x, x, jnp.nan), x), tangent
