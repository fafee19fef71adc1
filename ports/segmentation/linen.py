"""Segmentation networks in Flax Linen, NHWC. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows torchvision's models/segmentation and segmentation_models_pytorch's `Unet` in names, order and initial
distributions. Differs: there is no dropout, which torchvision's heads have in train mode.

`train` is an argument of every call: `module.apply(variables, x, train=True, mutable=["batch_stats"])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import xavier_uniform, zeros_init
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from ports.layers.checks import require_multiple
from ports.layers.flax import resize_bilinear
from ports.layers.initializers import kaiming_fan_in, torch_bias, torch_kernel
from ports.layers.linen import AnyArray, BatchNorm, Dtype, param_dtype
from ports.resnet.linen import ResNet
from ports.resnet.spec import Conv
from ports.segmentation.spec import SegmentationSpec

Input = Float[AnyArray, "batch height width channels"]
Image = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # a layer's output: channels and size may differ
ONE_PIXEL: Any = ((1, 1), (1, 1))  # padding on every side, as in PyTorch


def conv2d(conv: Conv, init: Initializer | None = None, *, dtype: Dtype) -> nn.Conv:
    """A convolution with PyTorch's initial weights, or with those of `init` and a bias of zero."""
    return nn.Conv(
        conv.out_channels,
        (conv.kernel_size, conv.kernel_size),
        padding=conv.padding,
        kernel_dilation=conv.dilation,
        use_bias=conv.bias,
        kernel_init=torch_kernel if init is None else init,
        bias_init=torch_bias(conv.fan_in) if init is None else zeros_init(),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
    )


def batch_norm(conv: Conv, *, dtype: Dtype) -> Callable[..., Features]:
    """The BatchNorm after a convolution; a convolution with a bias has absorbed its BatchNorm."""
    return identity if conv.bias else BatchNorm(param_dtype=param_dtype(dtype))


def identity(x: Features) -> Features:
    return x


def image_mean(x: Features) -> Features:
    return x.mean(axis=(1, 2), keepdims=True)


def conv_bn_relu(conv: Conv, init: Initializer | None = None, *, dtype: Dtype) -> list[Callable[..., Features]]:
    return [conv2d(conv, init, dtype=dtype), batch_norm(conv, dtype=dtype), nn.relu]


def sequential(layers: Sequence[Callable[..., Features]], x: Features, train: bool) -> Features:
    """Apply layers in order; a BatchNorm is told its mode, and so is the pyramid."""
    for layer in layers:
        if isinstance(layer, BatchNorm):
            x = layer(x, use_running_average=not train)
        elif isinstance(layer, ASPP):
            x = layer(x, train=train)
        else:
            x = layer(x)
    return x


def fcn_head(convs: tuple[Conv, Conv], *, dtype: Dtype) -> list[Callable[..., Features]]:
    """Two convolutions (Long et al. 2015, as torchvision has it)."""
    first, last = convs
    # The identity takes the place of torchvision's dropout, so that the last convolution is number 4, as there.
    return [*conv_bn_relu(first, dtype=dtype), identity, conv2d(last, dtype=dtype)]


class ASPP(nn.Module):
    """The pyramid: convolutions of several rates, and the mean of the image (Chen et al. 2017, figure 5)."""

    spec: SegmentationSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        *near, mean = spec.pyramid
        branches = [conv_bn_relu(conv, dtype=dtype) for conv in near]
        self.convs = [*branches, [image_mean, *conv_bn_relu(mean, dtype=dtype)]]
        self.project = conv_bn_relu(spec.project, dtype=dtype)

    def __call__(self, x: Features, train: bool = False) -> Features:
        *near, mean = [sequential(conv, x, train) for conv in self.convs]
        mean = resize_bilinear(mean, (x.shape[1], x.shape[2]))
        return sequential(self.project, jnp.concatenate([*near, mean], axis=-1), train)


def deeplab_head(spec: SegmentationSpec, *, dtype: Dtype) -> list[Callable[..., Features]]:
    """The pyramid, then two convolutions."""
    first, last = spec.deeplab_head
    return [ASPP(spec, dtype), *conv_bn_relu(first, dtype=dtype), conv2d(last, dtype=dtype)]


class SegmentationNet(nn.Module):
    """FCN or DeepLabV3.

    It takes float images (batch, height, width, channels), and gives a dict of logits (batch, height, width, classes):
    `out`, and `aux` of the auxiliary head.
    """

    spec: SegmentationSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.backbone = ResNet(spec.backbone, dtype)
        if spec.head == "deeplabv3":
            self.classifier = deeplab_head(spec, dtype=dtype)
        else:
            self.classifier = fcn_head(spec.fcn_head(spec.features[-1]), dtype=dtype)
        self.aux_classifier = fcn_head(spec.fcn_head(spec.features[-2]), dtype=dtype) if spec.auxiliary else None

    def __call__(self, x: Input, train: bool = False) -> dict[str, Features]:
        size = (x.shape[1], x.shape[2])
        features = self.backbone(x, train=train)
        result = {"out": resize_bilinear(sequential(self.classifier, features[-1], train), size)}
        if self.aux_classifier is not None:
            result["aux"] = resize_bilinear(sequential(self.aux_classifier, features[-2], train), size)
        return result


class Encoder(ResNet):
    """A residual network that also gives the features of its stem."""

    def __call__(self, x: Input, train: bool = False) -> tuple[Features, ...]:
        assert self.bn1 is not None
        stem = nn.relu(self.bn1(self.conv1(jnp.asarray(x)), use_running_average=not train))
        features = [stem]
        out: Features = nn.max_pool(stem, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            assert blocks is not None
            for block in blocks:
                out = block(out, train=train)
            features.append(out)
        return tuple(features)


class DecoderBlock(nn.Module):
    """Doubles the size; two convolutions also read the encoder's features of that size."""

    convs: tuple[Conv, Conv]
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        conv1, conv2 = self.convs
        self.conv1 = conv_bn_relu(conv1, kaiming_fan_in, dtype=self.dtype)
        self.conv2 = conv_bn_relu(conv2, kaiming_fan_in, dtype=self.dtype)

    def __call__(self, x: Features, skip: Features | None, train: bool = False) -> Features:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        return sequential(self.conv2, sequential(self.conv1, x, train), train)


class Decoder(nn.Module):
    """The way up: from the coarsest features to the image's size (Ronneberger et al. 2015, figure 1, right)."""

    spec: SegmentationSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.blocks = [DecoderBlock(convs, self.dtype) for convs in self.spec.decoder_blocks]

    def __call__(self, features: tuple[Features, ...], train: bool = False) -> Features:
        stem, layer1, layer2, layer3, x = features
        for block, skip in zip(self.blocks, (layer3, layer2, layer1, stem, None), strict=True):
            x = block(x, skip, train=train)
        return x


class UNet(nn.Module):
    """Images (batch, height, width, channels) to logits (batch, height, width, classes)."""

    spec: SegmentationSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.encoder = Encoder(spec.backbone, dtype)
        self.decoder = Decoder(spec, dtype)
        self.segmentation_head = [conv2d(spec.segmentation_head, xavier_uniform(), dtype=dtype)]

    def __call__(self, x: Input, train: bool = False) -> Features:
        require_multiple(self.spec.name, (x.shape[1], x.shape[2]), self.spec.size_step)
        return sequential(self.segmentation_head, self.decoder(self.encoder(x, train=train), train=train), train)
