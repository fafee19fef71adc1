"""The tutorial networks in Flax NNX, NHWC. Read beside pytorch.py and linen.py: the same classes in the same order."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ports.layers.initializers import torch_bias, torch_kernel
from ports.layers.nnx import AnyArray, BatchNorm, Dtype, linear, param_dtype
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
    rngs: nnx.Rngs,
) -> tuple[nnx.Conv, Callable[..., Image]]:
    """A convolution that keeps the size at stride 1, and its BatchNorm; `folded`: the convolution alone."""
    conv = nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias or folded,
        kernel_init=torch_kernel,
        bias_init=torch_bias(in_channels * size**2),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )
    return conv, identity if folded else BatchNorm(out_channels, param_dtype=param_dtype(dtype), rngs=rngs)


def identity(x: Image) -> Image:
    return x


class ResidualBlock(nnx.Module):
    """3x3 convolutions with BN, ReLU between them; the shortcut is added before the last ReLU.

    Args:
        downsample: the layers on the shortcut; by default a 1x1 convolution and BN if the shape changes, or the
            identity.
        bias: of the 3x3 convolutions.
        convs: their number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        downsample: Callable[[Image], Features] | None = None,
        bias: bool = False,
        convs: int = 2,
        folded: bool = False,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kind = {"dtype": dtype, "rngs": rngs}
        self.conv1, self.bn1 = conv_bn(in_channels, out_channels, 3, stride, bias, folded, **kind)
        second = conv_bn(out_channels, out_channels, 3, 1, bias, folded, **kind) if convs > 1 else (None, None)
        self.conv2, self.bn2 = second
        more: list[Callable[..., Features]] = []
        for _ in range(convs - 2):
            more += [nnx.relu, *conv_bn(out_channels, out_channels, 3, 1, bias, folded, **kind)]
        self.more = nnx.Sequential(*more) if more else None
        if downsample is None and (stride != 1 or in_channels != out_channels):
            downsample = nnx.Sequential(*conv_bn(in_channels, out_channels, 1, stride, folded=folded, **kind))
        self.downsample = downsample

    def __call__(self, x: Image) -> Features:
        out = self.bn1(self.conv1(x))
        if self.conv2 is not None and self.bn2 is not None:
            out = self.bn2(self.conv2(nnx.relu(out)))
        if self.more is not None:
            out = self.more(out)
        return nnx.relu(out + (x if self.downsample is None else self.downsample(x)))


class TutorialNet(nnx.Module):
    """Float images (batch, height, width, channels) to logits (batch, classes)."""

    def __init__(self, spec: TutorialSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec, (a, b, c) = spec, spec.widths
        convs, folded, kind = spec.convs, spec.folded, {"dtype": dtype, "rngs": rngs}
        self.conv1, self.bn1 = conv_bn(spec.in_channels, a, bias=True, folded=folded, **kind)
        self.res1 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, **kind)
        self.res2 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, **kind)
        self.res3 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded, **kind)
        self.conv2, self.bn2 = conv_bn(a, b, stride=2, bias=True, folded=folded, **kind)
        self.res4 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, **kind)
        self.res5 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, **kind)
        self.res6 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded, **kind)
        self.conv3, self.bn3 = conv_bn(b, c, stride=2, bias=True, folded=folded, **kind)
        self.res7 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, **kind)
        self.res8 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, **kind)
        self.res9 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded, **kind)
        self.fc = linear(c, spec.num_classes, **kind)

    def __call__(self, x: Input) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(jnp.asarray(x))))
        x = self.res3(self.res2(self.res1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = self.res6(self.res5(self.res4(x)))
        x = nnx.relu(self.bn3(self.conv3(x)))
        x = self.res9(self.res8(self.res7(x)))
        return self.fc(x.mean(axis=(1, 2)))


class TutorialResNet(nnx.Module):
    """Float images (batch, height, width, channels) to logits (batch, classes)."""

    def __init__(self, spec: TutorialSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec, (narrow, wide) = spec, spec.widths
        convs, folded, kind = spec.convs, spec.folded, {"dtype": dtype, "rngs": rngs}
        self.layer1 = nnx.Sequential(*conv_bn(spec.in_channels, narrow, folded=folded, **kind), nnx.relu)
        self.layer2 = ResidualBlock(narrow, narrow, convs=convs, folded=folded, **kind)
        self.layer3 = ResidualBlock(narrow, wide, stride=2, convs=convs, folded=folded, **kind)
        self.layer4 = ResidualBlock(wide, wide, convs=convs, folded=folded, **kind)
        self.fc = linear(wide, spec.num_classes, **kind)

    def __call__(self, x: Input) -> Float[Array, "batch classes"]:
        x = self.layer4(self.layer3(self.layer2(self.layer1(jnp.asarray(x)))))
        return self.fc(x.mean(axis=(1, 2)))
