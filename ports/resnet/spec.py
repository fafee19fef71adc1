"""Residual networks as data: one frozen `ResNetSpec` per network, read by all three ports. No framework is imported.

A `ResNetSpec` is what a paper's table gives: stem, stages, kind of block. `ResNetSpec.layout()` resolves it into the
blocks that a port builds, and `layers()` lists the layers with tensors. `ports.resnet.family` names the networks.

Sources: He et al. 2016a, "Deep Residual Learning" (v1; section 3.3 and 4.1 for shortcut options A, B, C and 4.2 for
CIFAR); He et al. 2016b, "Identity Mappings" (v2, pre-activation); Xie et al. 2017 (ResNeXt); Zagoruyko and Komodakis
2016 (Wide ResNet); He et al. 2019, "Bag of Tricks" (ResNet-D); torchvision's resnet.py (names, v1.5 stride).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ports.errors import UserError, require_positive
from ports.family import Layer, batch_norm_layer, conv_layer, linear_layer

Shortcut = Literal["projection", "projection_always", "zero_pad", "pooled_projection"]
SHORTCUTS: tuple[Shortcut, ...] = ("projection", "projection_always", "zero_pad", "pooled_projection")


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution as PyTorch defines it: symmetric zero padding that keeps the size at stride 1."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            got = f"{self.in_channels} to {self.out_channels} channels in {self.groups} groups"
            raise UserError(f"convolution: got {got}, expected channels that the groups divide")

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel_size // 2)

    @property
    def fan_in(self) -> int:
        return self.in_channels // self.groups * self.kernel_size**2


@dataclass(frozen=True)
class Block:
    """What all residual blocks of a network have in common.

    Attributes:
        bottleneck: convolutions of 1x1, 3x3 and 1x1 pixels instead of twice 3x3.
        expansion: output channels per channel of the stage (4 in a bottleneck).
        stride_at: which convolution carries the stride: in a bottleneck 1 as torchvision does (v1.5), 0 as He et al.
        preactivation: BN and ReLU before each convolution (v2) instead of after it (v1).
        shortcut: its form if the shape changes: `projection` (1x1 convolution; option B), `projection_always` (in every
            block; option C), `zero_pad` (strided slice and zero channels; option A, no parameters), `pooled_projection`
            (average pool, then 1x1 convolution at stride 1; ResNet-D). Elsewhere the identity.
        shortcut_norm: BatchNorm after the shortcut's convolution.
        residual: False gives the plain twin: the same layers without any shortcut.
        groups, base_width: ResNeXt's cardinality and Wide ResNet's width, as torchvision counts them.
        zero_init_last: each block starts as its shortcut: its last BatchNorm is zero (Goyal et al. 2017, section 5.1),
            or with `preactivation` its last convolution (a zero BatchNorm before a ReLU would never get a gradient).
        folded: for inference: every BatchNorm directly after a convolution is part of that convolution; the weights
            come from `ports.weights.known.fold`, or of `parity convert --fold-batchnorm`.
    """

    bottleneck: bool = False
    expansion: int = 1
    stride_at: int = 0
    preactivation: bool = False
    shortcut: Shortcut = "projection"
    shortcut_norm: bool = True
    residual: bool = True
    groups: int = 1
    base_width: int = 64
    zero_init_last: bool = False
    folded: bool = False

    def __post_init__(self) -> None:
        require_positive("block ", expansion=self.expansion, groups=self.groups, base_width=self.base_width)
        if not 0 <= self.stride_at < len(self.kernels):
            raise UserError(f"block stride_at: got {self.stride_at}, expected 0 to {len(self.kernels) - 1}")
        if self.shortcut not in SHORTCUTS:
            raise UserError(f"block shortcut: got {self.shortcut!r}, expected one of {', '.join(SHORTCUTS)}")

    @property
    def kernels(self) -> tuple[int, ...]:
        return (1, 3, 1) if self.bottleneck else (3, 3)


BASIC = Block()
BOTTLENECK = Block(bottleneck=True, expansion=4, stride_at=1)
PREACT_BASIC = Block(preactivation=True, shortcut_norm=False)
PREACT_BOTTLENECK = Block(bottleneck=True, expansion=4, preactivation=True, shortcut_norm=False)


@dataclass(frozen=True)
class Stem:
    """The layers before the first block.

    Attributes:
        convs: (channels, kernel size, stride) of each convolution, with BN and ReLU between them. BN and ReLU also
            follow the last one, except in a pre-activation network, whose first block has them.
        max_pool: a 3x3 max-pool of stride 2 at the end.
    """

    convs: tuple[tuple[int, int, int], ...]
    max_pool: bool = False

    def __post_init__(self) -> None:
        if not self.convs or any(kernel % 2 == 0 for _, kernel, _ in self.convs):
            raise UserError(f"stem convs: got {self.convs}, expected one or more (channels, odd kernel size, stride)")
        for channels, kernel, stride in self.convs:
            require_positive("stem convs ", channels=channels, kernel=kernel, stride=stride)

    @property
    def channels(self) -> int:
        return self.convs[-1][0]

    @property
    def stride(self) -> int:
        stride = 2 if self.max_pool else 1
        for _, _, s in self.convs:
            stride *= s
        return stride


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution: `channels` (before the block's expansion), how many, and the stride of the first."""

    channels: int
    blocks: int
    stride: int = 1

    def __post_init__(self) -> None:
        require_positive("stage ", channels=self.channels, blocks=self.blocks, stride=self.stride)


@dataclass(frozen=True)
class BlockLayout:
    """One residual block, resolved. `name` is its path in the network: `layer1.0`.

    Up to the convolution at `stride_at` it works on the input's grid (`first_dilation`), after that on the output's
    (`dilation`).
    """

    name: str
    block: Block
    in_channels: int
    out_channels: int
    stride: int = 1
    first_dilation: int = 1
    dilation: int = 1

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions on the residual branch, in order."""
        block, last = self.block, len(self.block.kernels) - 1
        width = int(self.out_channels // block.expansion * (block.base_width / 64)) * block.groups
        return tuple(
            Conv(
                in_channels=width if i else self.in_channels,
                out_channels=self.out_channels if i == last else width,
                kernel_size=kernel,
                stride=self.stride if i == block.stride_at else 1,
                dilation=1 if kernel == 1 else self.first_dilation if i <= block.stride_at else self.dilation,
                groups=block.groups if kernel > 1 else 1,
                bias=block.folded and not (block.preactivation and i == last),
            )
            for i, kernel in enumerate(block.kernels)
        )

    @property
    def projection(self) -> Conv | None:
        """The 1x1 convolution on the shortcut; None if the shortcut has no parameters.

        If dilation replaces a stride, the block keeps its projection, so that weights fit both networks.
        """
        block = self.block
        if not block.residual or block.shortcut == "zero_pad":
            return None
        if not (self.changes_shape or block.shortcut == "projection_always"):
            return None
        stride = 1 if block.shortcut == "pooled_projection" else self.stride
        return Conv(self.in_channels, self.out_channels, 1, stride, bias=block.folded and block.shortcut_norm)

    @property
    def zero_pads(self) -> bool:
        """Whether the shortcut is option A: it leaves pixels out, adds `extra_channels`, and has no parameters."""
        return self.block.residual and self.block.shortcut == "zero_pad" and self.changes_shape

    @property
    def changes_shape(self) -> bool:
        return self.stride * self.replaced_stride != 1 or self.in_channels != self.out_channels

    @property
    def extra_channels(self) -> int:
        if self.in_channels > self.out_channels:
            got = f"{self.in_channels} to {self.out_channels} channels"
            raise UserError(f"block shortcut zero_pad: got {got}, expected no fewer than before")
        return self.out_channels - self.in_channels

    @property
    def replaced_stride(self) -> int:
        """The stride that dilation replaces; 1 if it replaces none."""
        return self.dilation // self.first_dilation


@dataclass(frozen=True)
class StageLayout:
    """One stage, resolved; `stride` is the network's stride at the stage's output."""

    name: str
    blocks: tuple[BlockLayout, ...]
    channels: int
    stride: int


@dataclass(frozen=True)
class ResNetSpec:
    """One network.

    Attributes:
        stages: one to four.
        input_size: height and width that the network was made for; any size works.
        features_only: the output is a tuple of every stage's output instead of logits; there is no classifier.
        output_stride: stride of the last stage's output; below the network's own, dilation replaces striding.
        source: where the network was published, and where its names come from.
    """

    name: str
    stem: Stem
    stages: tuple[Stage, ...]
    block: Block
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    features_only: bool = False
    output_stride: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {"num_classes": self.num_classes, "in_channels": self.in_channels, "input_size": self.input_size}
        require_positive(f"{self.name}: ", **sizes)
        if not 1 <= len(self.stages) <= 4:
            raise UserError(f"{self.name}: stages: got {len(self.stages)}, expected one to four")
        if self.output_stride is not None and self.output_stride not in self.output_strides:
            choices = ", ".join(str(s) for s in self.output_strides)
            raise UserError(f"{self.name}: output_stride: got {self.output_stride!r}, expected one of {choices}")

    @property
    def output_strides(self) -> tuple[int, ...]:
        """The possible strides of the last stage, the network's own first."""
        strides = [self.stem.stride]
        for stage in self.stages:
            if stage.stride > 1:
                strides.append(strides[-1] * stage.stride)
        return tuple(reversed(strides))

    @property
    def features(self) -> int:
        """Channels of the last stage's output."""
        return self.stages[-1].channels * self.block.expansion

    @property
    def number_of_blocks(self) -> int:
        return sum(stage.blocks for stage in self.stages)

    @property
    def stem_convs(self) -> tuple[Conv, ...]:
        """The convolutions of the stem, in order."""
        inputs = (self.in_channels, *(channels for channels, _, _ in self.stem.convs))
        normed = len(self.stem.convs) - self.block.preactivation
        return tuple(
            Conv(inputs[i], out, kernel, stride, bias=self.block.folded and i < normed)
            for i, (out, kernel, stride) in enumerate(self.stem.convs)
        )

    def layout(self) -> tuple[StageLayout, ...]:
        """Every stage and block with its channels, stride, dilation and name.

        If dilation replaces a stride, everything after the strided convolution is dilated by it: at `output_stride`
        8 the outputs at every fourth place are those of the network at 32 (Chen et al. 2017, section 3.1).
        """
        limit = self.output_stride or self.output_strides[0]
        channels, total, dilation, stages = self.stem.channels, self.stem.stride, 1, []
        for s, stage in enumerate(self.stages, 1):
            out = stage.channels * self.block.expansion
            first_dilation, stride = dilation, stage.stride
            if total * stride > limit:
                dilation, stride = dilation * stride, 1
            total *= stride
            blocks = []
            for b in range(stage.blocks):
                name = f"layer{s}.{b}"
                blocks.append(BlockLayout(name, self.block, channels, out, stride, first_dilation, dilation))
                channels, stride, first_dilation = out, 1, dilation
            stages.append(StageLayout(f"layer{s}", tuple(blocks), out, total))
        return tuple(stages)


def layers(spec: ResNetSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    convs, folded, preactivation = spec.stem_convs, spec.block.folded, spec.block.preactivation
    for i, conv in enumerate(convs):
        yield conv_layer("stem.conv", f"conv1.{3 * i}" if len(convs) > 1 else "conv1", conv, i=i)
        if i < len(convs) - 1 and not folded:
            yield batch_norm_layer("stem.bn", f"conv1.{3 * i + 1}", conv.out_channels, i=i)
    if not preactivation and not folded:
        yield batch_norm_layer("bn1", "bn1", spec.stem.channels)
    blocks = [(s, b, block) for s, stage in enumerate(spec.layout()) for b, block in enumerate(stage.blocks)]
    for n, (s, b, block) in enumerate(blocks):
        kind = "BottleneckResNetBlock" if spec.block.expansion > 1 else "ResNetBlock"
        yield from _layers_of_block(block, at=block.name, stage=s, block=b, n=n, kind=kind)
    if not spec.features_only:
        if preactivation:
            yield batch_norm_layer("last.bn", "bn", spec.features)
        yield linear_layer("fc", "fc", spec.features, spec.num_classes)


def _layers_of_block(layout: BlockLayout, **place: Any) -> Iterator[Layer]:
    block, name = layout.block, layout.name
    for i, conv in enumerate(layout.convs):
        channels = conv.in_channels if block.preactivation else conv.out_channels
        pair = [conv_layer("conv", f"{name}.conv{i + 1}", conv, i=i, **place)]
        if not block.folded or (block.preactivation and i == 0):
            last = i == len(layout.convs) - 1
            norm = batch_norm_layer("bn", f"{name}.bn{i + 1}", channels, ends_branch=last, i=i, **place)
            pair.insert(0 if block.preactivation else 1, norm)
        yield from pair
    if layout.projection is not None:
        at = int(block.shortcut == "pooled_projection")
        yield conv_layer("shortcut.conv", f"{name}.downsample.{at}", layout.projection, i=0, **place)
        if block.shortcut_norm and not block.folded:
            yield batch_norm_layer("shortcut.bn", f"{name}.downsample.{at + 1}", layout.out_channels, i=1, **place)
