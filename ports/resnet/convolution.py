"""The convolution of both Flax ports: XLA's, and on CPUs what XLA's own does not find there.

Two thirds of ResNet-50's convolutions have a window of one pixel. They are products of matrices, which Eigen and
YNNPACK take faster than the same as a convolution. And in a step of training XLA's CPU backend turns the large operand
of a filter's gradient around in memory, computing once more whatever elementwise operations led to it; here it is the
one with fewer channels (`product`), or one that is computed already (`kept`). What it is worth is measured:
`python -m benchmarks resnet50 --batch 8 --subjects linen,linen-lax`.

`product` has a gradient of its own, and so no forward mode (`jax.jvp`, `jax.hessian`): where that is wanted,
`ports.resnet.convolution.tuned = False` before the network is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

tuned = True  # False: XLA's convolutions everywhere

PIXELS = ((0, 1, 2), (0, 1, 2))  # batch, height and width, summed over


def conv_general_dilated(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "window_height window_width channels_per_group out_channels"],
    strides: Sequence[int],
    padding: Any,
    *,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **kw: Any,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """`jax.lax.conv_general_dilated` as Flax's layers call it: (batch, height, width, channels), no dilated input."""
    if tuned and jax.default_backend() == "cpu":
        if kernel.shape[:2] == (1, 1) and feature_group_count == 1:
            return product(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)
        x = kept(x)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **kw,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "channels out_channels"], precision: Any
) -> Float[Array, "batch height width out_channels"]:
    """A window of one pixel. Of its gradient the first operand is turned around in memory: the smaller one."""
    return jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision)


def _product_forward(x: Any, kernel: Any, precision: Any) -> tuple[Any, Any]:
    return product(x, kernel, precision), (x, kernel)


def _product_backward(precision: Any, saved: Any, gradient: Any) -> tuple[Any, Any]:
    x, kernel = saved
    to_x = jax.lax.dot_general(gradient, kernel, (((3,), (1,)), ((), ())), precision)
    first, second = (x, gradient) if x.shape[-1] < gradient.shape[-1] else (gradient, x)
    to_kernel = jax.lax.dot_general(first, second, (PIXELS, ((), ())), precision)
    return to_x, to_kernel if first is x else to_kernel.T


product.defvjp(_product_forward, _product_backward)


@jax.custom_jvp
def kept(x: Array) -> Array:
    """The same, and where gradients are taken an array that XLA computes once, for it does not look into `cond`.

    `jax.lax.optimization_barrier` does not bring that about: the profile is the same with it as without.
    """
    return x


@kept.defjvp
def _kept_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    first = x[(0,) * x.ndim]
    # Both give x; the second only looks otherwise.
    return jax.lax.cond(first == first, lambda x: x, lambda x: jnp.where(x == x, x, jnp.nan), x), tangent
