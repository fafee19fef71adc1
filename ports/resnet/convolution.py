"""The convolution of both Flax ports: XLA's, but for windows of one pixel on CPUs, which are products of matrices.

XLA's CPU backend hands both to Eigen, whose product takes a half to a quarter of the time of its convolution there, and
for gradients with respect to filters less. Two thirds of ResNet-50's convolutions have such a window. What it is worth
is measured: `python -m benchmarks resnet50 --batch 8 --subjects linen,linen-lax`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float


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
    if jax.default_backend() == "cpu" and kernel.shape[:2] == (1, 1) and feature_group_count == 1:
        x = x[:, :: strides[0], :: strides[1]]
        return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())), precision)
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
