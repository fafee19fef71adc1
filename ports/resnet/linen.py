"""Residual networks in Flax Linen, NHWC. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows torchvision's resnet.py in names and initial distributions. BatchNorm is PyTorch's (`ports.layers.linen`).

`train` is an argument of every call: `module.apply(variables, x, train=True, mutable=["batch_stats"])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
from jaxtyping import Array, Float

from ports.layers.initializers import kaiming_fan_out, torch_bias
from ports.layers.linen import AnyArray, BatchNorm, Dtype, linear, param_dtype
from ports.resnet.spec import Block, BlockLayout, Conv, ResNetSpec

Input = Float[AnyArray, "batch height width channels"]
Image = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # a layer's output: channels and size may differ
ONE_PIXEL: Any = ((1, 1), (1, 1))  # padding on every side, as in PyTorch


def conv2d(conv: Conv, *, zero: bool = False, dtype: Dtype) -> nn.Conv:
    return nn.Conv(
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
    )


def batch_norm(*, zero: bool = False, folded: bool = False, dtype: Dtype) -> Callable[..., Image]:
    if folded:
        return identity
    scale_init = initializers.zeros_init() if zero else initializers.ones_init()
    return BatchNorm(scale_init=scale_init, param_dtype=param_dtype(dtype))


def identity(x: Image, **_: object) -> Image:
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
        return nn.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)


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


def downsample(layout: BlockLayout, *, dtype: Dtype) -> Sequence[Callable[..., Features]]:
    """The layers on the shortcut; empty for the identity, and without a shortcut."""
    block, conv = layout.block, layout.projection
    if conv is None:
        return [ZeroPad(layout.extra_channels, layout.stride)] if layout.zero_pads else []
    layers: list[Callable[..., Features]] = [avg_pool(layout)] if block.shortcut == "pooled_projection" else []
    layers.append(conv2d(conv, dtype=dtype))
    if block.shortcut_norm:
        layers.append(batch_norm(folded=block.folded, dtype=dtype))
    return layers


def sequential(layers: Sequence[Callable[..., Features]], x: Image, train: bool) -> Features:
    """Apply layers in order; a BatchNorm is told its mode."""
    for layer in layers:
        x = layer(x, use_running_average=not train) if isinstance(layer, BatchNorm) else layer(x)
    return x


class BasicBlock(nn.Module):
    """v1: 3x3 and 3x3 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, left)."""

    layout: BlockLayout
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        block, (conv1, conv2), dtype = self.layout.block, self.layout.convs, self.dtype
        self.conv1 = conv2d(conv1, dtype=dtype)
        self.bn1 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv2 = conv2d(conv2, dtype=dtype)
        self.bn2 = batch_norm(zero=block.zero_init_last, folded=block.folded, dtype=dtype)
        self.downsample, self.residual = downsample(self.layout, dtype=dtype), block.residual

    def __call__(self, x: Image, train: bool = False) -> Features:
        out = nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        out = self.bn2(self.conv2(out), use_running_average=not train)
        if self.residual:
            out = out + sequential(self.downsample, x, train)
        return nn.relu(out)


class Bottleneck(nn.Module):
    """v1: 1x1, 3x3 and 1x1 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, right)."""

    layout: BlockLayout
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        block, (conv1, conv2, conv3), dtype = self.layout.block, self.layout.convs, self.dtype
        self.conv1 = conv2d(conv1, dtype=dtype)
        self.bn1 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv2 = conv2d(conv2, dtype=dtype)
        self.bn2 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv3 = conv2d(conv3, dtype=dtype)
        self.bn3 = batch_norm(zero=block.zero_init_last, folded=block.folded, dtype=dtype)
        self.downsample, self.residual = downsample(self.layout, dtype=dtype), block.residual

    def __call__(self, x: Image, train: bool = False) -> Features:
        out = nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        out = nn.relu(self.bn2(self.conv2(out), use_running_average=not train))
        out = self.bn3(self.conv3(out), use_running_average=not train)
        if self.residual:
            out = out + sequential(self.downsample, x, train)
        return nn.relu(out)


class PreActBasicBlock(nn.Module):
    """v2: BN and ReLU come before each convolution (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    layout: BlockLayout
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        block, (conv1, conv2), dtype = self.layout.block, self.layout.convs, self.dtype
        self.bn1 = batch_norm(dtype=dtype)
        self.conv1 = conv2d(conv1, dtype=dtype)
        self.bn2 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv2 = conv2d(conv2, zero=block.zero_init_last, dtype=dtype)
        self.downsample, self.residual = downsample(self.layout, dtype=dtype), block.residual

    def __call__(self, x: Image, train: bool = False) -> Features:
        activated = nn.relu(self.bn1(x, use_running_average=not train))
        out = self.conv1(activated)
        out = self.conv2(nn.relu(self.bn2(out, use_running_average=not train)))
        if self.residual:
            out = out + sequential(self.downsample, activated if self.layout.projection else x, train)
        return out


class PreActBottleneck(nn.Module):
    """v2 of `Bottleneck`, as `PreActBasicBlock`."""

    layout: BlockLayout
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        block, (conv1, conv2, conv3), dtype = self.layout.block, self.layout.convs, self.dtype
        self.bn1 = batch_norm(dtype=dtype)
        self.conv1 = conv2d(conv1, dtype=dtype)
        self.bn2 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv2 = conv2d(conv2, dtype=dtype)
        self.bn3 = batch_norm(folded=block.folded, dtype=dtype)
        self.conv3 = conv2d(conv3, zero=block.zero_init_last, dtype=dtype)
        self.downsample, self.residual = downsample(self.layout, dtype=dtype), block.residual

    def __call__(self, x: Image, train: bool = False) -> Features:
        activated = nn.relu(self.bn1(x, use_running_average=not train))
        out = self.conv1(activated)
        out = self.conv2(nn.relu(self.bn2(out, use_running_average=not train)))
        out = self.conv3(nn.relu(self.bn3(out, use_running_average=not train)))
        if self.residual:
            out = out + sequential(self.downsample, activated if self.layout.projection else x, train)
        return out


def block_class(block: Block) -> Callable[..., nn.Module]:
    if block.preactivation:
        return PreActBottleneck if block.bottleneck else PreActBasicBlock
    return Bottleneck if block.bottleneck else BasicBlock


class ResNet(nn.Module):
    """The network of a `ResNetSpec`.

    It takes float images (batch, height, width, channels), and gives logits (batch, classes), or with `features_only` a
    tuple of every stage's output (batch, height / stride, width / stride, channels), the finest first.

    Attributes:
        dtype: type of the activations and the parameters; the parameters are float32 at least.
    """

    spec: ResNetSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, block, dtype = self.spec, block_class(self.spec.block), self.dtype
        preactivation, folded = spec.block.preactivation, spec.block.folded
        self.conv1 = stem(spec, dtype=dtype)
        self.bn1 = None if preactivation else batch_norm(folded=folded, dtype=dtype)
        stages = [[block(layout, dtype) for layout in stage.blocks] for stage in spec.layout()]
        self.layer1, self.layer2, self.layer3, self.layer4 = (*stages, None, None, None)[:4]
        self.bn = batch_norm(dtype=dtype) if preactivation and not spec.features_only else None
        self.fc = None if spec.features_only else linear(spec.features, spec.num_classes, dtype=dtype)

    def __call__(self, x: Input, train: bool = False) -> Float[Array, "batch classes"] | tuple[Features, ...]:
        x = jnp.asarray(x)
        x = sequential(self.conv1, x, train) if len(self.spec.stem_convs) > 1 else self.conv1(x)
        if self.bn1 is not None:
            x = nn.relu(self.bn1(x, use_running_average=not train))
        if self.spec.stem.max_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        features = []
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            if blocks is not None:
                for block in blocks:
                    x = block(x, train=train)
                features.append(x)
        if self.fc is None:
            return tuple(features)
        if self.bn is not None:
            x = nn.relu(self.bn(x, use_running_average=not train))
        return self.fc(x.mean(axis=(1, 2)))


def stem(spec: ResNetSpec, *, dtype: Dtype) -> Any:
    """One convolution, or several with BN and ReLU between them."""
    layers: list[Callable[..., Features]] = []
    for conv in spec.stem_convs:
        layers += [conv2d(conv, dtype=dtype), batch_norm(folded=spec.block.folded, dtype=dtype), nn.relu]
    return layers[:-2] if len(spec.stem_convs) > 1 else layers[0]
