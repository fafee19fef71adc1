"""Known mistakes in convolutions, transposed convolutions and linear layers. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from parity.traps.layers.layer_types import CONV, LINEAR, UP
from parity.traps.layers.wrappers import PaddedOnBothSides, SamePadding, another_function, same_transposed
from parity.traps.planting import setting, tensor
from parity.traps.trap import Trap

KERNEL = "a kernel goes from (out, in, height, width) to (height, width, in, out): transpose by (2, 3, 1, 0)"
PADDING = "jnp.pad with the mode, then padding='VALID'"
CONV_PAGES = "torch.nn.Conv2d, flax.linen.Conv"
STRIDE_NOTE = "torchvision.models.resnet50, Note"
GUIDE = "Flax guide, Convert PyTorch models to Flax"
UP_PAGES = "torch.nn.ConvTranspose2d, jax.lax.conv_transpose"


def _unpadded(layer: Any) -> nn.Module | None:
    return setting(padding=(0,) * len(layer.padding))(layer) if isinstance(layer.padding, tuple) else None


def _strideless(layer: Any) -> nn.Module | None:
    return setting(stride=(1,) * len(layer.stride))(layer)


def _undilated(layer: Any) -> nn.Module | None:
    if set(layer.dilation) == {1}:
        return None
    layer.padding = tuple(p // d for p, d in zip(layer.padding, layer.dilation, strict=True))
    return setting(dilation=(1,) * len(layer.dilation))(layer)


def _mode(own: tuple[str, ...], new: str) -> Callable[[Any], nn.Module | None]:
    return lambda conv: setting(padding_mode=new)(conv) if conv.padding_mode in own else None


def _reversed(name: str) -> Callable[[Any], nn.Module | None]:
    return lambda layer: setting(**{name: tuple(getattr(layer, name))[::-1]})(layer)


def _other_padding(layer: Any) -> nn.Module | None:
    other = tuple(k - 1 - p for k, p in zip(layer.kernel_size, layer.padding, strict=True))
    return setting(padding=other)(layer)


KERNELS = (
    Trap(
        "conv-padding-same",
        "layer",
        CONV,
        lambda layer: None if set(layer.stride) == {1} else SamePadding(layer),
        "the convolution pads like 'SAME'; PyTorch pads both sides alike",
        "pass the padding as numbers, such as padding=((1, 1), (1, 1))",
        "flax.linen.Conv: padding",
        arguments=("padding",),
    ),
    Trap(
        "conv-not-causal",
        "layer",
        (nn.Conv1d,),
        lambda layer: PaddedOnBothSides(layer) if (*layer.stride, *layer.padding) == (1, 0) else None,
        "the convolution pads like 'SAME' and sees what comes later; PyTorch's model pads in front alone",
        "let the convolution pad in front alone: padding='CAUSAL'",
        "flax.linen.Conv: padding; van den Oord et al. 2016, WaveNet, section 2.1",
    ),
    Trap(
        "conv-padding-none",
        "layer",
        CONV,
        _unpadded,
        "the convolution does not pad",
        "pass the padding as numbers, such as padding=((1, 1), (1, 1))",
        CONV_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-stride-one",
        "layer",
        CONV,
        _strideless,
        "the convolution has stride 1",
        "pass strides=, as PyTorch's layer has it",
        STRIDE_NOTE,
        arguments=("strides",),
    ),
    Trap(
        "conv-dilation-forgotten",
        "layer",
        CONV,
        _undilated,
        "the kernel is not dilated",
        "pass kernel_dilation=, which is PyTorch's dilation",
        CONV_PAGES,
        arguments=("kernel_dilation", "padding"),
    ),
    Trap(
        "kernel-transposed",
        "layer",
        CONV,
        tensor("weight", lambda w: w.transpose(-1, -2) if w.ndim > 3 else w),
        "height and width of the kernel are exchanged",
        "transpose the kernel by (2, 3, 1, 0), channels last; nn.ConvTranspose: transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "kernel-flipped",
        "layer",
        CONV,
        tensor("weight", lambda w: w.flip(tuple(range(2, w.ndim)))),
        "the kernel is flipped",
        "transpose by (2, 3, 1, 0); flip only for nn.ConvTranspose without transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "kernel-in-out-exchanged",
        "layer",
        CONV,
        tensor("weight", lambda w: w.transpose(0, 1)),
        "input and output channels of the kernel are exchanged",
        "transpose the kernel by (2, 3, 1, 0), channels last; nn.ConvTranspose: transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "linear-transposed",
        "layer",
        LINEAR,
        tensor("weight", lambda w: w.T),
        "the matrix is not transposed",
        "transpose the weight from (out, in) to (in, out): kernel = weight.T",
        "torch.nn.Linear, flax.linen.Dense",
    ),
    Trap(
        "bias-lost",
        "layer",
        CONV + LINEAR,
        tensor("bias", torch.zeros_like),
        "the bias is missing or zero",
        "pass use_bias=True, and write PyTorch's bias",
        "torch.nn.Linear, flax.linen.Dense: use_bias",
    ),
)

STRIDES_AND_TRANSPOSED = (
    Trap(
        "conv-stride-two",
        "layer",
        CONV,
        lambda c: setting(stride=(2,) * len(c.stride))(c),
        "the stride is 2",
        "pass strides=, as PyTorch's layer has it",
        STRIDE_NOTE,
        arguments=("strides",),
    ),
    Trap(
        "conv-stride-exchanged",
        "layer",
        CONV,
        _reversed("stride"),
        "the strides of height and width are exchanged",
        "pass strides=(height, width), in PyTorch's order",
        STRIDE_NOTE,
        arguments=("strides",),
    ),
    Trap(
        "conv-padding-exchanged",
        "layer",
        CONV,
        _reversed("padding"),
        "the paddings of height and width are exchanged",
        "pass padding=((h, h), (w, w)) for PyTorch's padding=(h, w)",
        CONV_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-padding-zeros",
        "layer",
        CONV,
        _mode(("reflect", "replicate", "circular"), "zeros"),
        "zeros for PyTorch's padding_mode",
        "use jnp.pad ('reflect'; 'edge' for replicate; 'wrap' for circular), then pass padding='VALID'",
        CONV_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-padding-circular",
        "layer",
        CONV,
        _mode(("reflect", "replicate"), "circular"),
        "the padding goes round",
        "use jnp.pad ('reflect'; 'edge' for replicate), then pass padding='VALID' to nn.Conv",
        CONV_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-padding-reflect",
        "layer",
        CONV,
        _mode(("replicate", "circular"), "reflect"),
        "the padding reflects",
        "use jnp.pad ('edge' for replicate; 'wrap' for circular), then pass padding='VALID' to nn.Conv",
        CONV_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-transpose-flipped",
        "layer",
        UP,
        tensor("weight", lambda w: w.flip(tuple(range(2, w.ndim)))),
        "the kernel is flipped: Flax's does not flip it without transpose_kernel",
        "pass transpose_kernel=True to nn.ConvTranspose",
        UP_PAGES,
    ),
    Trap(
        "conv-transpose-padding-copied",
        "layer",
        UP,
        _other_padding,
        "PyTorch's padding was copied",
        "pass padding=dilation * (k − 1) − p, for PyTorch's kernel size k and padding p",
        UP_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-transpose-padding-none",
        "layer",
        UP,
        lambda c: setting(padding=(0,) * len(c.padding))(c),
        "'VALID'",
        "pass padding=dilation * (k − 1) − p, for PyTorch's kernel size k and padding p",
        UP_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-transpose-output-padding-lost",
        "layer",
        UP,
        lambda c: setting(output_padding=(0,) * len(c.output_padding))(c),
        "output_padding is missing",
        "add output_padding to the second number of each axis's padding",
        UP_PAGES,
        arguments=("padding",),
    ),
    Trap(
        "conv-transpose-same",
        "layer",
        UP[1:2],
        another_function(same_transposed),
        "the layer pads like 'SAME'",
        "pass padding=dilation * (k − 1) − p, for PyTorch's kernel size k and padding p",
        UP_PAGES,
        arguments=("padding",),
    ),
)
