"""Segmentation networks in PyTorch, NCHW. Read beside nnx.py and linen.py: the same classes in the same order.

Follows torchvision's models/segmentation and segmentation_models_pytorch's `Unet` in names, order and initial
distributions. Differs: there is no dropout, which torchvision's heads have in train mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ports.layers.checks import require_multiple
from ports.layers.pytorch import resize_bilinear
from ports.resnet.pytorch import ResNet
from ports.resnet.spec import Conv
from ports.segmentation.spec import SegmentationSpec

Image = Float[Tensor, "batch channels height width"]
Features = Float[Tensor, "batch _ _ _"]  # a layer's output: channels and size may differ

torch.fx.wrap("require_multiple")  # a traced network has the check as one call


def conv2d(conv: Conv, init: Callable[[Tensor], Tensor] | None = None) -> nn.Conv2d:
    """A convolution with PyTorch's initial weights, or with those of `init` and a bias of zero."""
    layer = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        padding=conv.padding,
        dilation=conv.dilation,
        bias=conv.bias,
    )
    if init is not None:
        init(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


def batch_norm(conv: Conv) -> nn.Module:
    """The BatchNorm after a convolution; a convolution with a bias has absorbed its BatchNorm."""
    return nn.Identity() if conv.bias else nn.BatchNorm2d(conv.out_channels, eps=1e-5, momentum=0.1)


def kaiming_fan_in(weight: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(weight, mode="fan_in", nonlinearity="relu")


def conv_bn_relu(conv: Conv, init: Callable[[Tensor], Tensor] | None = None) -> list[nn.Module]:
    return [conv2d(conv, init), batch_norm(conv), nn.ReLU()]


def fcn_head(convs: tuple[Conv, Conv]) -> nn.Sequential:
    """Two convolutions (Long et al. 2015, as torchvision has it)."""
    first, last = convs
    # The identity takes the place of torchvision's dropout, so that the last convolution is number 4, as there.
    return nn.Sequential(*conv_bn_relu(first), nn.Identity(), conv2d(last))


class ASPP(nn.Module):
    """The pyramid: convolutions of several rates, and the mean of the image (Chen et al. 2017, figure 5)."""

    def __init__(self, spec: SegmentationSpec) -> None:
        super().__init__()
        *near, mean = spec.pyramid
        branches = [nn.Sequential(*conv_bn_relu(conv)) for conv in near]
        self.convs = nn.ModuleList([*branches, nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(mean))])
        self.project = nn.Sequential(*conv_bn_relu(spec.project))

    def forward(self, x: Features) -> Features:
        *near, mean = [conv(x) for conv in self.convs]
        mean = resize_bilinear(mean, (x.shape[2], x.shape[3]))
        return self.project(torch.cat([*near, mean], dim=1))


def deeplab_head(spec: SegmentationSpec) -> nn.Sequential:
    """The pyramid, then two convolutions."""
    first, last = spec.deeplab_head
    return nn.Sequential(ASPP(spec), *conv_bn_relu(first), conv2d(last))


class SegmentationNet(nn.Module):
    """FCN or DeepLabV3.

    It takes float images (batch, channels, height, width), and gives a dict of logits (batch, classes, height, width):
    `out`, and `aux` of the auxiliary head.
    """

    def __init__(self, spec: SegmentationSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = ResNet(spec.backbone)
        features = spec.features
        self.classifier = deeplab_head(spec) if spec.head == "deeplabv3" else fcn_head(spec.fcn_head(features[-1]))
        self.aux_classifier = fcn_head(spec.fcn_head(features[-2])) if spec.auxiliary else None

    def forward(self, x: Image) -> dict[str, Features]:
        size = (x.shape[2], x.shape[3])
        features = self.backbone(x)
        result = {"out": resize_bilinear(self.classifier(features[-1]), size)}
        if self.aux_classifier is not None:
            result["aux"] = resize_bilinear(self.aux_classifier(features[-2]), size)
        return result


class Encoder(ResNet):
    """A residual network that also gives the features of its stem."""

    def forward(self, x: Image) -> tuple[Features, ...]:
        assert self.bn1 is not None
        stem = F.relu(self.bn1(self.conv1(x)))
        features = [stem]
        out = F.max_pool2d(stem, kernel_size=3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            assert layer is not None
            out = layer(out)
            features.append(out)
        return tuple(features)


class DecoderBlock(nn.Module):
    """Doubles the size; two convolutions also read the encoder's features of that size."""

    def __init__(self, convs: tuple[Conv, Conv]) -> None:
        super().__init__()
        conv1, conv2 = convs
        self.conv1 = nn.Sequential(*conv_bn_relu(conv1, kaiming_fan_in))
        self.conv2 = nn.Sequential(*conv_bn_relu(conv2, kaiming_fan_in))

    def forward(self, x: Features, skip: Features | None) -> Features:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """The way up: from the coarsest features to the image's size (Ronneberger et al. 2015, figure 1, right)."""

    def __init__(self, spec: SegmentationSpec) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(convs) for convs in spec.decoder_blocks)

    def forward(self, features: tuple[Features, ...]) -> Features:
        stem, layer1, layer2, layer3, x = features
        for block, skip in zip(self.blocks, (layer3, layer2, layer1, stem, None), strict=True):
            x = block(x, skip)
        return x


class UNet(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, classes, height, width)."""

    def __init__(self, spec: SegmentationSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec.backbone)
        self.decoder = Decoder(spec)
        self.segmentation_head = nn.Sequential(conv2d(spec.segmentation_head, nn.init.xavier_uniform_))

    def forward(self, x: Image) -> Features:
        require_multiple(self.spec.name, (x.shape[2], x.shape[3]), self.spec.size_step)
        return self.segmentation_head(self.decoder(self.encoder(x)))
