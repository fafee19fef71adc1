"""Segmentation networks in Flax NNX, NHWC. Read beside pytorch.py and linen.py: the same classes in the same order.

Follows torchvision's models/segmentation and segmentation_models_pytorch's `Unet` in names, order and initial
distributions. Differs: there is no dropout, which torchvision's heads have in train mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.initializers import xavier_uniform, zeros_init
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from ports.layers.checks import require_multiple
from ports.layers.flax import resize_bilinear
from ports.layers.initializers import kaiming_fan_in, torch_bias, torch_kernel
from ports.layers.nnx import AnyArray, BatchNorm, Dtype, param_dtype
from ports.resnet.nnx import ResNet
from ports.resnet.spec import Conv
from ports.segmentation.spec import SegmentationSpec

Input = Float[AnyArray, "batch height width channels"]
Image = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # a layer's output: channels and size may differ
ONE_PIXEL: Any = ((1, 1), (1, 1))  # padding on every side, as in PyTorch


def conv2d(conv: Conv, init: Initializer | None = None, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution with PyTorch's initial weights, or with those of `init` and a bias of zero."""
    return nnx.Conv(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size, conv.kernel_size),
        padding=conv.padding,
        kernel_dilation=conv.dilation,
        use_bias=conv.bias,
        kernel_init=torch_kernel if init is None else init,
        bias_init=torch_bias(conv.fan_in) if init is None else zeros_init(),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


def batch_norm(conv: Conv, *, dtype: Dtype, rngs: nnx.Rngs) -> Callable[..., Features]:
    """The BatchNorm after a convolution; a convolution with a bias has absorbed its BatchNorm."""
    return identity if conv.bias else BatchNorm(conv.out_channels, param_dtype=param_dtype(dtype), rngs=rngs)


def identity(x: Features) -> Features:
    return x


def image_mean(x: Features) -> Features:
    return x.mean(axis=(1, 2), keepdims=True)


def conv_bn_relu(
    conv: Conv, init: Initializer | None = None, *, dtype: Dtype, rngs: nnx.Rngs
) -> list[Callable[..., Features]]:
    return [
        conv2d(conv, init, dtype=dtype, rngs=rngs),
        batch_norm(conv, dtype=dtype, rngs=rngs),
        nnx.relu,
    ]


def fcn_head(convs: tuple[Conv, Conv], *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Sequential:
    """Two convolutions (Long et al. 2015, as torchvision has it)."""
    first, last = convs
    # The identity takes the place of torchvision's dropout, so that the last convolution is number 4, as there.
    return nnx.Sequential(*conv_bn_relu(first, dtype=dtype, rngs=rngs), identity, conv2d(last, dtype=dtype, rngs=rngs))


class ASPP(nnx.Module):
    """The pyramid: convolutions of several rates, and the mean of the image (Chen et al. 2017, figure 5)."""

    def __init__(self, spec: SegmentationSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        *near, mean = spec.pyramid
        branches = [nnx.Sequential(*conv_bn_relu(conv, dtype=dtype, rngs=rngs)) for conv in near]
        branches.append(nnx.Sequential(image_mean, *conv_bn_relu(mean, dtype=dtype, rngs=rngs)))
        self.convs = nnx.List(branches)
        self.project = nnx.Sequential(*conv_bn_relu(spec.project, dtype=dtype, rngs=rngs))

    def __call__(self, x: Features) -> Features:
        *near, mean = [conv(x) for conv in self.convs]
        mean = resize_bilinear(mean, (x.shape[1], x.shape[2]))
        return self.project(jnp.concatenate([*near, mean], axis=-1))


def deeplab_head(spec: SegmentationSpec, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Sequential:
    """The pyramid, then two convolutions."""
    first, last = spec.deeplab_head
    return nnx.Sequential(
        ASPP(spec, dtype=dtype, rngs=rngs),
        *conv_bn_relu(first, dtype=dtype, rngs=rngs),
        conv2d(last, dtype=dtype, rngs=rngs),
    )


class SegmentationNet(nnx.Module):
    """FCN or DeepLabV3.

    It takes float images (batch, height, width, channels), and gives a dict of logits (batch, height, width, classes):
    `out`, and `aux` of the auxiliary head.
    """

    def __init__(self, spec: SegmentationSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.backbone = ResNet(spec.backbone, dtype=dtype, rngs=rngs)
        if spec.head == "deeplabv3":
            self.classifier = deeplab_head(spec, dtype=dtype, rngs=rngs)
        else:
            self.classifier = fcn_head(spec.fcn_head(spec.features[-1]), dtype=dtype, rngs=rngs)
        auxiliary = spec.fcn_head(spec.features[-2])
        self.aux_classifier = fcn_head(auxiliary, dtype=dtype, rngs=rngs) if spec.auxiliary else None

    def __call__(self, x: Input) -> dict[str, Features]:
        size = (x.shape[1], x.shape[2])
        features = self.backbone(x)
        result = {"out": resize_bilinear(self.classifier(features[-1]), size)}
        if self.aux_classifier is not None:
            result["aux"] = resize_bilinear(self.aux_classifier(features[-2]), size)
        return result


class Encoder(ResNet):
    """A residual network that also gives the features of its stem."""

    def __call__(self, x: Input) -> tuple[Features, ...]:
        assert self.bn1 is not None
        stem = nnx.relu(self.bn1(self.conv1(jnp.asarray(x))))
        features = [stem]
        out: Features = nnx.max_pool(stem, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            assert layer is not None
            out = layer(out)
            features.append(out)
        return tuple(features)


class DecoderBlock(nnx.Module):
    """Doubles the size; two convolutions also read the encoder's features of that size."""

    def __init__(self, convs: tuple[Conv, Conv], *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        conv1, conv2 = convs
        self.conv1 = nnx.Sequential(*conv_bn_relu(conv1, kaiming_fan_in, dtype=dtype, rngs=rngs))
        self.conv2 = nnx.Sequential(*conv_bn_relu(conv2, kaiming_fan_in, dtype=dtype, rngs=rngs))

    def __call__(self, x: Features, skip: Features | None) -> Features:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        return self.conv2(self.conv1(x))


class Decoder(nnx.Module):
    """The way up: from the coarsest features to the image's size (Ronneberger et al. 2015, figure 1, right)."""

    def __init__(self, spec: SegmentationSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([DecoderBlock(convs, dtype=dtype, rngs=rngs) for convs in spec.decoder_blocks])

    def __call__(self, features: tuple[Features, ...]) -> Features:
        stem, layer1, layer2, layer3, x = features
        for block, skip in zip(self.blocks, (layer3, layer2, layer1, stem, None), strict=True):
            x = block(x, skip)
        return x


class UNet(nnx.Module):
    """Images (batch, height, width, channels) to logits (batch, height, width, classes)."""

    def __init__(self, spec: SegmentationSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.encoder = Encoder(spec.backbone, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(spec, dtype=dtype, rngs=rngs)
        head = conv2d(spec.segmentation_head, xavier_uniform(), dtype=dtype, rngs=rngs)
        self.segmentation_head = nnx.Sequential(head)

    def __call__(self, x: Input) -> Features:
        require_multiple(self.spec.name, (x.shape[1], x.shape[2]), self.spec.size_step)
        return self.segmentation_head(self.decoder(self.encoder(x)))
