"""Residual networks in Flax NNX, NHWC. Read beside pytorch.py and linen.py: the same classes in the same order.

Follows torchvision's resnet.py in names and initial distributions. BatchNorm is PyTorch's (`ports.layers.nnx`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from jaxtyping import Array, Float

from ports.layers.initializers import kaiming_fan_out, torch_bias
from ports.layers.nnx import AnyArray, BatchNorm, Dtype, linear, param_dtype
from ports.resnet.spec import Block, BlockLayout, Conv, ResNetSpec

Input = Float[AnyArray, "batch height width channels"]
Image = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # a layer's output: channels and size may differ
ONE_PIXEL: Any = ((1, 1), (1, 1))  # padding on every side, as in PyTorch


def conv2d(conv: Conv, *, zero: bool = False, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size, conv.kernel_size),
        strides=conv.stride,
        padding=conv.padding,
        kernel_dilation=conv.dilation,
        feature_group_count=conv.groups,
        use_bias=conv.bias,
        kernel_init=initializers.zeros_init() if zero else kaiming_fan_out,
        bias_init=torch_bias(conv.fan_in),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


def batch_norm(
    channels: int, *, zero: bool = False, folded: bool = False, dtype: Dtype, rngs: nnx.Rngs
) -> Callable[..., Image]:
    if folded:
        return identity
    scale_init = initializers.zeros_init() if zero else initializers.ones_init()
    return BatchNorm(channels, scale_init=scale_init, param_dtype=param_dtype(dtype), rngs=rngs)


def identity(x: Image) -> Image:
    return x


@dataclass(frozen=True)
class ZeroPad:
    """Option A: every `stride`-th pixel, and channels of zeros on both sides (He et al. 2016a, section 3.3)."""

    extra: int
    stride: int

    def __call__(self, x: Image) -> Features:
        before, after = self.extra // 2, self.extra - self.extra // 2
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (before, after)))


@dataclass(frozen=True)
class AvgPool:
    """PyTorch's AvgPool2d(size, ceil_mode=True, count_include_pad=False)."""

    size: int

    def __call__(self, x: Image) -> Features:
        window = (self.size, self.size)
        padding: Any = [(0, -size % self.size) for size in x.shape[1:3]]
        return nnx.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)


@dataclass(frozen=True)
class DilatedAvgPool:
    """`AvgPool` at every place, over values `dilation` apart."""

    size: int
    dilation: int

    def __call__(self, x: Image) -> Image:
        return self.total(x) / self.total(jnp.ones_like(x[:1, :, :, :1]))

    def total(self, x: Image) -> Image:
        far = (0, (self.size - 1) * self.dilation)
        window, apart = (1, self.size, self.size, 1), (1, self.dilation, self.dilation, 1)
        padding = ((0, 0), far, far, (0, 0))
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), padding, window_dilation=apart)


def avg_pool(layout: BlockLayout) -> Callable[[Image], Features]:
    if layout.replaced_stride > 1:
        return DilatedAvgPool(layout.replaced_stride, layout.first_dilation)
    return AvgPool(layout.stride) if layout.stride > 1 else identity


def downsample(layout: BlockLayout, *, dtype: Dtype, rngs: nnx.Rngs) -> Callable[[Image], Features] | None:
    """The layers on the shortcut; None for the identity, and without a shortcut."""
    block, conv = layout.block, layout.projection
    if conv is None:
        return ZeroPad(layout.extra_channels, layout.stride) if layout.zero_pads else None
    layers: list[Callable[..., Features]] = [avg_pool(layout)] if block.shortcut == "pooled_projection" else []
    layers.append(conv2d(conv, dtype=dtype, rngs=rngs))
    if block.shortcut_norm:
        layers.append(batch_norm(conv.out_channels, folded=block.folded, dtype=dtype, rngs=rngs))
    return nnx.Sequential(*layers)


class BasicBlock(nnx.Module):
    """v1: 3x3 and 3x3 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, left)."""

    def __init__(self, layout: BlockLayout, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        block, (conv1, conv2) = layout.block, layout.convs
        self.conv1 = conv2d(conv1, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(conv1.out_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv2 = conv2d(conv2, dtype=dtype, rngs=rngs)
        zero = block.zero_init_last
        self.bn2 = batch_norm(conv2.out_channels, zero=zero, folded=block.folded, dtype=dtype, rngs=rngs)
        self.downsample, self.residual = downsample(layout, dtype=dtype, rngs=rngs), block.residual

    def __call__(self, x: Image) -> Features:
        out = nnx.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return nnx.relu(out)


class Bottleneck(nnx.Module):
    """v1: 1x1, 3x3 and 1x1 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, right)."""

    def __init__(self, layout: BlockLayout, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        block, (conv1, conv2, conv3) = layout.block, layout.convs
        self.conv1 = conv2d(conv1, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(conv1.out_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv2 = conv2d(conv2, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(conv2.out_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv3 = conv2d(conv3, dtype=dtype, rngs=rngs)
        zero = block.zero_init_last
        self.bn3 = batch_norm(conv3.out_channels, zero=zero, folded=block.folded, dtype=dtype, rngs=rngs)
        self.downsample, self.residual = downsample(layout, dtype=dtype, rngs=rngs), block.residual

    def __call__(self, x: Image) -> Features:
        out = nnx.relu(self.bn1(self.conv1(x)))
        out = nnx.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return nnx.relu(out)


class PreActBasicBlock(nnx.Module):
    """v2: BN and ReLU come before each convolution (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    def __init__(self, layout: BlockLayout, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        block, (conv1, conv2) = layout.block, layout.convs
        self.bn1 = batch_norm(conv1.in_channels, dtype=dtype, rngs=rngs)
        self.conv1 = conv2d(conv1, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(conv2.in_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv2 = conv2d(conv2, zero=block.zero_init_last, dtype=dtype, rngs=rngs)
        self.downsample, self.residual = downsample(layout, dtype=dtype, rngs=rngs), block.residual
        self.projects = layout.projection is not None

    def __call__(self, x: Image) -> Features:
        activated = nnx.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(nnx.relu(self.bn2(out)))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(activated if self.projects else x))
        return out


class PreActBottleneck(nnx.Module):
    """v2 of `Bottleneck`, as `PreActBasicBlock`."""

    def __init__(self, layout: BlockLayout, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        block, (conv1, conv2, conv3) = layout.block, layout.convs
        self.bn1 = batch_norm(conv1.in_channels, dtype=dtype, rngs=rngs)
        self.conv1 = conv2d(conv1, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(conv2.in_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv2 = conv2d(conv2, dtype=dtype, rngs=rngs)
        self.bn3 = batch_norm(conv3.in_channels, folded=block.folded, dtype=dtype, rngs=rngs)
        self.conv3 = conv2d(conv3, zero=block.zero_init_last, dtype=dtype, rngs=rngs)
        self.downsample, self.residual = downsample(layout, dtype=dtype, rngs=rngs), block.residual
        self.projects = layout.projection is not None

    def __call__(self, x: Image) -> Features:
        activated = nnx.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(nnx.relu(self.bn2(out)))
        out = self.conv3(nnx.relu(self.bn3(out)))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(activated if self.projects else x))
        return out


def block_class(block: Block) -> Callable[..., nnx.Module]:
    if block.preactivation:
        return PreActBottleneck if block.bottleneck else PreActBasicBlock
    return Bottleneck if block.bottleneck else BasicBlock


class ResNet(nnx.Module):
    """The network of a `ResNetSpec`.

    It takes float images (batch, height, width, channels), and gives logits (batch, classes), or with `features_only` a
    tuple of every stage's output (batch, height / stride, width / stride, channels), the finest first.

    Args:
        dtype: type of the activations and the parameters; the parameters are float32 at least.
    """

    def __init__(self, spec: ResNetSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec, block = spec, block_class(spec.block)
        preactivation, folded = spec.block.preactivation, spec.block.folded
        self.conv1 = stem(spec, dtype=dtype, rngs=rngs)
        self.bn1 = None if preactivation else batch_norm(spec.stem.channels, folded=folded, dtype=dtype, rngs=rngs)
        stages = [
            nnx.Sequential(*(block(layout, dtype=dtype, rngs=rngs) for layout in stage.blocks))
            for stage in spec.layout()
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = (*stages, None, None, None)[:4]
        last = preactivation and not spec.features_only
        self.bn = batch_norm(spec.features, dtype=dtype, rngs=rngs) if last else None
        self.fc = None if spec.features_only else linear(spec.features, spec.num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: Input) -> Float[Array, "batch classes"] | tuple[Features, ...]:
        x = self.conv1(jnp.asarray(x))
        if self.bn1 is not None:
            x = nnx.relu(self.bn1(x))
        if self.spec.stem.max_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            if layer is not None:
                x = layer(x)
                features.append(x)
        if self.fc is None:
            return tuple(features)
        if self.bn is not None:
            x = nnx.relu(self.bn(x))
        return self.fc(x.mean(axis=(1, 2)))


def stem(spec: ResNetSpec, *, dtype: Dtype, rngs: nnx.Rngs) -> Callable[[Image], Features]:
    """One convolution, or several with BN and ReLU between them."""
    layers: list[Callable[..., Features]] = []
    for conv in spec.stem_convs:
        layers.append(conv2d(conv, dtype=dtype, rngs=rngs))
        layers += [batch_norm(conv.out_channels, folded=spec.block.folded, dtype=dtype, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers[:-2]) if len(spec.stem_convs) > 1 else layers[0]
