"""The tutorial networks in Flax Linen, NHWC. Read beside pytorch.py and nnx.py: the same classes in the same order.

`train` is an argument of every call: `module.apply(variables, x, train=True, mutable=["batch_stats"])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ports.layers.initializers import torch_bias, torch_kernel
from ports.layers.linen import AnyArray, BatchNorm, Dtype, linear, param_dtype
from ports.tutorial.spec import TutorialSpec

Input = Float[AnyArray, "batch height width channels"]
Image = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # a layer's output: channels and size may differ


def conv_bn(
    in_channels: int,
    out_channels: int,
    size: int = 3,
    stride: int = 1,
    bias: bool = False,
    folded: bool = False,
    *,
    dtype: Dtype = jnp.float32,
) -> tuple[nn.Conv, Callable[..., Image]]:
    """A convolution that keeps the size at stride 1, and its BatchNorm; `folded`: the convolution alone."""
    conv = nn.Conv(
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias or folded,
        kernel_init=torch_kernel,
        bias_init=torch_bias(in_channels * size**2),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
    )
    return conv, identity if folded else BatchNorm(param_dtype=param_dtype(dtype))


def identity(x: Image, **_: object) -> Image:
    return x


def sequential(layers: Sequence[Callable[..., Features]], x: Image, train: bool) -> Features:
    """Apply layers in order; a BatchNorm is told its mode."""
    for layer in layers:
        x = layer(x, use_running_average=not train) if isinstance(layer, BatchNorm) else layer(x)
    return x


class ResidualBlock(nn.Module):
    """3x3 convolutions with BN, ReLU between them; the shortcut is added before the last ReLU.

    Attributes:
        layers: the layers on the shortcut; by default a 1x1 convolution and BN if the shape changes, or the identity.
        bias: of the 3x3 convolutions.
        convs: their number.
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    layers: Sequence[Callable[..., Features]] | None = None
    bias: bool = False
    convs: int = 2
    folded: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        inputs, outputs, bias, folded, dtype = self.in_channels, self.out_channels, self.bias, self.folded, self.dtype
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, self.stride, bias, folded, dtype=dtype)
        second = conv_bn(outputs, outputs, 3, 1, bias, folded, dtype=dtype) if self.convs > 1 else (None, None)
        self.conv2, self.bn2 = second
        more: list[Callable[..., Features]] = []
        for _ in range(self.convs - 2):
            more += [nn.relu, *conv_bn(outputs, outputs, 3, 1, bias, folded, dtype=dtype)]
        self.more = more or None
        downsample = self.layers
        if downsample is None and (self.stride != 1 or inputs != outputs):
            downsample = conv_bn(inputs, outputs, 1, self.stride, folded=folded, dtype=dtype)
        self.downsample = downsample

    def __call__(self, x: Image, train: bool = False) -> Features:
        out = self.bn1(self.conv1(x), use_running_average=not train)
        if self.conv2 is not None and self.bn2 is not None:
            out = self.bn2(self.conv2(nn.relu(out)), use_running_average=not train)
        if self.more is not None:
            out = sequential(self.more, out, train)
        return nn.relu(out + (x if self.downsample is None else sequential(self.downsample, x, train)))


class TutorialNet(nn.Module):
    """Float images (batch, height, width, channels) to logits (batch, classes)."""

    spec: TutorialSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, (a, b, c), dtype = self.spec, self.spec.widths, self.dtype
        convs, folded = spec.convs, spec.folded
        self.conv1, self.bn1 = conv_bn(spec.in_channels, a, bias=True, folded=folded, dtype=dtype)
        self.res1 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res2 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res3 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.conv2, self.bn2 = conv_bn(a, b, stride=2, bias=True, folded=folded, dtype=dtype)
        self.res4 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res5 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res6 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.conv3, self.bn3 = conv_bn(b, c, stride=2, bias=True, folded=folded, dtype=dtype)
        self.res7 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res8 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.res9 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, dtype=dtype)
        self.fc = linear(c, spec.num_classes, dtype=dtype)

    def __call__(self, x: Input, train: bool = False) -> Float[Array, "batch classes"]:
        x = nn.relu(self.bn1(self.conv1(jnp.asarray(x)), use_running_average=not train))
        x = self.res3(self.res2(self.res1(x, train), train), train)
        x = nn.relu(self.bn2(self.conv2(x), use_running_average=not train))
        x = self.res6(self.res5(self.res4(x, train), train), train)
        x = nn.relu(self.bn3(self.conv3(x), use_running_average=not train))
        x = self.res9(self.res8(self.res7(x, train), train), train)
        return self.fc(x.mean(axis=(1, 2)))


class TutorialResNet(nn.Module):
    """Float images (batch, height, width, channels) to logits (batch, classes)."""

    spec: TutorialSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, (narrow, wide), dtype = self.spec, self.spec.widths, self.dtype
        convs, folded = spec.convs, spec.folded
        self.layer1 = [*conv_bn(spec.in_channels, narrow, folded=folded, dtype=dtype), nn.relu]
        self.layer2 = ResidualBlock(narrow, narrow, convs=convs, folded=folded, dtype=dtype)
        self.layer3 = ResidualBlock(narrow, wide, stride=2, convs=convs, folded=folded, dtype=dtype)
        self.layer4 = ResidualBlock(wide, wide, convs=convs, folded=folded, dtype=dtype)
        self.fc = linear(wide, spec.num_classes, dtype=dtype)

    def __call__(self, x: Input, train: bool = False) -> Float[Array, "batch classes"]:
        x = sequential(self.layer1, jnp.asarray(x), train)
        x = self.layer4(self.layer3(self.layer2(x, train), train), train)
        return self.fc(x.mean(axis=(1, 2)))
