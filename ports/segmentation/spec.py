"""Segmentation networks as data: one frozen `SegmentationSpec` per network, read by all three ports.

No framework is imported.

A residual network reads the image, and a head gives every pixel a logit for each class. FCN and DeepLabV3 use a network
whose last two strides are replaced by dilation, and resize the output of their head to the size of the image. U-Net
uses one with all strides, doubles the size five times, and reads the encoder's features of each size.

Sources: Long et al. 2015 (FCN); Chen et al. 2017, "Rethinking Atrous Convolution" (DeepLabV3); Ronneberger et al. 2015
(U-Net); names and numbers of torchvision's models/segmentation and of segmentation_models_pytorch's `Unet`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ports.errors import UserError, require_positive
from ports.family import Layer, batch_norm_layer, conv_layer
from ports.resnet import spec as resnet
from ports.resnet.spec import BASIC, BOTTLENECK, Conv, ResNetSpec, Stage, Stem

Head = Literal["fcn", "deeplabv3", "unet"]
HEADS: tuple[Head, ...] = ("fcn", "deeplabv3", "unet")


@dataclass(frozen=True)
class SegmentationSpec:
    """One segmentation network.

    Attributes:
        head: `fcn`, `deeplabv3` or `unet`.
        depths: blocks in each of the backbone's four stages.
        bottleneck: the backbone's blocks have convolutions of 1x1, 3x3 and 1x1 pixels instead of twice 3x3.
        width: channels of the stem and the first stage; each further stage has twice as many.
        auxiliary: whether FCN and DeepLabV3 have a second head after the third stage, which helps training.
        rates: (DeepLabV3) dilation of each 3x3 convolution in the pyramid.
        hidden: (DeepLabV3) channels of each branch of the pyramid.
        decoder: (U-Net) channels of each of the five decoder blocks.
        folded: for inference: each BatchNorm is part of the convolution before it; the weights come from
            `ports.weights.known.fold`, or of `parity convert --fold-batchnorm`.
        input_size: height and width of an example, in pixels; other sizes work.
        source: where the network was published, and where its names come from.
    """

    name: str
    head: Head
    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    width: int = 64
    auxiliary: bool = True
    rates: tuple[int, ...] = (12, 24, 36)
    hidden: int = 256
    decoder: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    folded: bool = False
    num_classes: int = 21
    in_channels: int = 3
    input_size: int = 224
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("width", "hidden", "num_classes", "in_channels", "input_size")}
        require_positive(f"{self.name}: ", **sizes)
        for name, number in (("depths", 4), ("decoder", 5), ("rates", None)):
            values = getattr(self, name)
            require_positive(f"{self.name}: ", **{f"{name}[{i}]": value for i, value in enumerate(values)})
            if number is not None and len(values) != number:
                raise UserError(f"{self.name}: {name}: got {len(values)} numbers, expected {number}")
        if self.head not in HEADS:
            raise UserError(f"{self.name}: head: got {self.head!r}, expected one of {', '.join(HEADS)}")
        if self.head == "unet" and self.auxiliary:
            raise UserError(f"{self.name}: auxiliary: got True, expected False: a U-Net has one head")

    @property
    def number_of_blocks(self) -> int:
        return sum(self.depths)

    @property
    def size_step(self) -> int:
        """The number of pixels of which the height and width of an image must be multiples."""
        return self.backbone.output_strides[0] if self.head == "unet" else 1

    @property
    def backbone(self) -> ResNetSpec:
        """The residual network without its classifier; in FCN and DeepLabV3 dilation replaces the last two strides."""
        return ResNetSpec(
            self.name,
            Stem(convs=((self.width, 7, 2),), max_pool=True),
            tuple(Stage(self.width << i, blocks, stride=2 if i else 1) for i, blocks in enumerate(self.depths)),
            replace(BOTTLENECK if self.bottleneck else BASIC, folded=self.folded),
            in_channels=self.in_channels,
            input_size=self.input_size,
            features_only=True,
            output_stride=None if self.head == "unet" else 8,
            source=self.source,
        )

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the stem's output and of each stage's, the finest first."""
        return (self.width, *(stage.channels for stage in self.backbone.layout()))

    def fcn_head(self, in_channels: int) -> tuple[Conv, Conv]:
        """A 3x3 convolution, and after BN and ReLU the one that classifies."""
        inner = max(1, in_channels // 4)
        return Conv(in_channels, inner, 3, bias=self.folded), Conv(inner, self.num_classes, 1, bias=True)

    @property
    def pyramid(self) -> tuple[Conv, ...]:
        """The convolution of each branch of the pyramid: 1x1, 3x3 with each rate, and 1x1 of the image's mean."""
        given, folded = self.features[-1], self.folded
        dilated = (Conv(given, self.hidden, 3, dilation=rate, bias=folded) for rate in self.rates)
        return (Conv(given, self.hidden, 1, bias=folded), *dilated, Conv(given, self.hidden, 1, bias=folded))

    @property
    def project(self) -> Conv:
        """The 1x1 convolution that takes all branches of the pyramid."""
        return Conv(len(self.pyramid) * self.hidden, self.hidden, 1, bias=self.folded)

    @property
    def deeplab_head(self) -> tuple[Conv, Conv]:
        """The layers after the pyramid: a 3x3 convolution, and after BN and ReLU the one that classifies."""
        last = Conv(self.hidden, self.num_classes, 1, bias=True)
        return Conv(self.hidden, self.hidden, 3, bias=self.folded), last

    @property
    def decoder_blocks(self) -> tuple[tuple[Conv, Conv], ...]:
        """The convolutions of each decoder block.

        Except in the last block, the first one also takes the encoder's features.
        """
        *skips, head = self.features
        given = (head, *self.decoder[:-1])
        beside = (*reversed(skips), 0)
        return tuple(
            (Conv(a + b, out, 3, bias=self.folded), Conv(out, out, 3, bias=self.folded))
            for a, b, out in zip(given, beside, self.decoder, strict=True)
        )

    @property
    def segmentation_head(self) -> Conv:
        """The convolution that classifies every pixel of a U-Net."""
        return Conv(self.decoder[-1], self.num_classes, 3, bias=True)


def layers(spec: SegmentationSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    yield from _layers_of_backbone(spec, "encoder" if spec.head == "unet" else "backbone")
    if spec.head == "unet":
        yield from _layers_of_decoder(spec)
        yield conv_layer("head.conv", "segmentation_head.0", spec.segmentation_head)
        return
    if spec.head == "deeplabv3":
        yield from _layers_of_deeplab_head(spec)
    else:
        yield from _layers_of_fcn_head("classifier", spec.fcn_head(spec.features[-1]))
    if spec.auxiliary:
        yield from _layers_of_fcn_head("aux_classifier", spec.fcn_head(spec.features[-2]))


def _layers_of_backbone(spec: SegmentationSpec, at: str) -> Iterator[Layer]:
    for layer in resnet.layers(spec.backbone):
        # A role of its own: dialects give names to the roles of a whole network.
        yield replace(layer, role=f"backbone.{layer.role}", torch=f"{at}.{layer.torch}")


def _layers_of_fcn_head(at: str, convs: tuple[Conv, Conv]) -> Iterator[Layer]:
    first, last = convs
    yield from _conv_and_norm(f"{at}.0", f"{at}.1", first)
    yield conv_layer("head.conv", f"{at}.4", last)


def _layers_of_deeplab_head(spec: SegmentationSpec) -> Iterator[Layer]:
    aspp, (first, last) = "classifier.0", spec.deeplab_head
    for i, conv in enumerate(spec.pyramid):
        branch = f"{aspp}.convs.{i}"
        at = int(i == len(spec.pyramid) - 1)  # the last branch takes the mean first
        yield from _conv_and_norm(f"{branch}.{at}", f"{branch}.{at + 1}", conv, keys=(branch,))
    yield from _conv_and_norm(f"{aspp}.project.0", f"{aspp}.project.1", spec.project)
    yield from _conv_and_norm("classifier.1", "classifier.2", first)
    yield conv_layer("head.conv", "classifier.4", last)


def _layers_of_decoder(spec: SegmentationSpec) -> Iterator[Layer]:
    for i, convs in enumerate(spec.decoder_blocks):
        block = f"decoder.blocks.{i}"
        for name, conv in zip(("conv1", "conv2"), convs, strict=True):
            yield from _conv_and_norm(f"{block}.{name}.0", f"{block}.{name}.1", conv, keys=(block,))


def _conv_and_norm(conv_name: str, norm_name: str, conv: Conv, keys: tuple[str, ...] = ()) -> Iterator[Layer]:
    yield replace(conv_layer("head.conv", conv_name, conv), keys=keys)
    if not conv.bias:  # a bias before a BatchNorm: the BatchNorm is folded
        yield replace(batch_norm_layer("head.bn", norm_name, conv.out_channels), keys=keys)
