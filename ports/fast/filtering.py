"""Winograd's minimal filtering along the rows, for the PyTorch port's windows of 3 by 3 where Inductor freezes weights.

F(4, 3) of Lavin and Gray 2016, section 4.3, in one direction: four outputs in a column read six inputs, and six
products are enough instead of twelve. A product is a convolution with one row of the window, applied to a sum of every
fourth row of the image. PyTorch's own convolution does the work, and Inductor computes the sums in one pass, while
eager mode would need one pass for each. In float32 a layer's rounding is up to ten times what it is in the usual order.
An inf in the input turns every output that uses it into NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS, PIXELS = 64, 1500  # with fewer of them the sums take longer than what they save


# Bᵀ, G and Aᵀ in the paper, whose polynomials are interpolated at 0, 1, -1, 2, -2 and infinity.
def of_inputs(d: Sequence[Tensor]) -> list[Tensor]:
    far, near = (d[4] - 4 * d[2], d[3] - 4 * d[1]), (d[4] - d[2], 2 * (d[3] - d[1]))
    return [
        4 * d[0] - 5 * d[2] + d[4],
        far[0] + far[1],
        far[0] - far[1],
        near[0] + near[1],
        near[0] - near[1],
        4 * d[1] - 5 * d[3] + d[5],
    ]


def of_weights(g: Sequence[Tensor]) -> list[Tensor]:
    ones, twos = (g[0] + g[2], g[1]), (g[0] + 4 * g[2], 2 * g[1])
    return [
        g[0] / 4,
        -(ones[0] + ones[1]) / 6,
        -(ones[0] - ones[1]) / 6,
        (twos[0] + twos[1]) / 24,
        (twos[0] - twos[1]) / 24,
        g[2],
    ]


def to_outputs(m: Sequence[Tensor]) -> list[Tensor]:
    even, odd = (m[1] + m[2], m[3] + m[4]), (m[1] - m[2], m[3] - m[4])
    return [m[0] + even[0] + even[1], odd[0] + 2 * odd[1], even[0] + 4 * even[1], odd[0] + 8 * odd[1] + m[5]]


@torch.compiler.assume_constant_result
def frozen() -> bool:
    """Whether Inductor takes weights for constants, whose sums it computes once; never in what is exported.

    This is asked during tracing and not traced itself: inside a compiled program PyTorch 2.11 claims to be exporting.
    """
    from torch._inductor import config

    return config.freezing and not torch.compiler.is_exporting()


def pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this module can do a convolution, and does it faster. In an exported program it stays a convolution."""
    if not torch.compiler.is_compiling() or torch.is_grad_enabled() or not frozen():
        return False
    ways = (conv.kernel_size, conv.stride, conv.dilation, conv.groups, conv.padding_mode)
    if ways != ((3, 3), (1, 1), (1, 1), 1, "zeros") or isinstance(conv.padding, str):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    enough = x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS and min(conv.in_channels, conv.out_channels) >= CHANNELS
    return enough and x.is_contiguous(memory_format=torch.channels_last)


def convolve(
    x: Float[Tensor, "batch channels height width"], conv: nn.Conv2d
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """What `conv` gives."""
    above, beside = conv.padding
    height = x.shape[2] + 2 * int(above) - 2
    tiles = -(-height // 4)
    x = F.pad(x, (0, 0, int(above), int(above) + 4 * tiles - height))
    rows = [x[:, :, i : i + 4 * tiles - 3 : 4] for i in range(6)]
    products = [
        F.conv2d(image.contiguous(memory_format=torch.channels_last), weight, padding=(0, int(beside)))
        for image, weight in zip(of_inputs(rows), of_weights(conv.weight.split(1, 2)), strict=True)
    ]
    outputs = to_outputs(products)
    if conv.bias is not None:
        outputs = [output + conv.bias[:, None, None] for output in outputs]
    y = torch.stack([output.permute(0, 2, 3, 1) for output in outputs], dim=2)  # as it lies in memory
    return y.flatten(1, 2)[:, :height].permute(0, 3, 1, 2)
