"""Residual networks as data: one frozen `ResNetSpec` per network, read by all three ports. No framework is imported.

A `ResNetSpec` is what a paper's table gives (stem, stages, kind of block); `ResNetSpec.layout()` resolves it into the
blocks that a port builds (channels, stride, dilation and name of each), so that this arithmetic stands once.
`NETWORKS` holds the named networks.

Sources: He et al. 2016a, "Deep Residual Learning" (v1; section 3.3 and 4.1 for shortcut options A, B, C and 4.2 for
CIFAR); He et al. 2016b, "Identity Mappings" (v2, pre-activation); Xie et al. 2017 (ResNeXt); Zagoruyko and Komodakis
2016 (Wide ResNet); He et al. 2019, "Bag of Tricks" (ResNet-D); torchvision's resnet.py (names, v1.5 stride).
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from ports.errors import UserError

Shortcut = Literal["projection", "projection_always", "zero_pad", "pooled_projection"]
Norm = Literal["after", "inside", "none"]
Init = Literal["torchvision", "pytorch"]
NORMS: tuple[Norm, ...] = ("after", "inside", "none")
INITS: tuple[Init, ...] = ("torchvision", "pytorch")
SHORTCUTS: tuple[Shortcut, ...] = ("projection", "projection_always", "zero_pad", "pooled_projection")


def positive(owner: str, **fields: Any) -> None:
    """Raises where a field is no positive whole number."""
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{owner}{name}: got {value!r}, expected a positive whole number")


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution as PyTorch defines it: symmetric zero padding that keeps the size at stride 1.

    Attributes:
        folded: the BatchNorm behind it is part of its weight and bias (`ports.weights.fold`).
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    folded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", self.bias or self.folded)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            got = f"{self.in_channels} to {self.out_channels} channels in {self.groups} groups"
            raise UserError(f"convolution: got {got}, expected channels that the groups divide")

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel_size // 2)


@dataclass(frozen=True)
class Block:
    """What all residual blocks of a network have in common.

    Attributes:
        kernels: sizes of the convolutions in order: `(3, 3)` is the basic block, `(1, 3, 1)` the bottleneck, and a
            block may hold more, as `(3, 3, 3)`.
        expansion: output channels per channel of the stage (4 in a bottleneck).
        stride_at: which convolution carries the stride: in a bottleneck 1 as torchvision does (v1.5), 0 as He et al.
        preactivation: BN and ReLU before each convolution (v2) instead of after it (v1).
        shortcut: where the shape changes: `projection` (1x1 convolution; option B), `projection_always` (in every
            block; option C), `zero_pad` (strided slice and zero channels; option A, no parameters), `pooled_projection`
            (average pool, then 1x1 convolution at stride 1; ResNet-D). Elsewhere the identity.
        shortcut_norm: BatchNorm after the shortcut's convolution.
        residual: False gives the plain twin: the same layers without any shortcut.
        bias: bias in the convolutions of the block (not in its shortcut).
        groups, base_width: ResNeXt's cardinality and Wide ResNet's width, as torchvision counts them.
        zero_init_last: each block starts as its shortcut: its last BatchNorm is zero (Goyal et al. 2017, section 5.1),
            or with `preactivation` its last convolution (a zero BatchNorm before a ReLU would never get a gradient).
        folded: for inference: a BatchNorm directly behind a convolution, in the whole network, is part of it; the
            weights are those of `ports.weights.fold`, or of `parity convert --fold-batchnorm`.
    """

    kernels: tuple[int, ...] = (3, 3)
    expansion: int = 1
    stride_at: int = 0
    preactivation: bool = False
    shortcut: Shortcut = "projection"
    shortcut_norm: bool = True
    residual: bool = True
    bias: bool = False
    groups: int = 1
    base_width: int = 64
    zero_init_last: bool = False
    folded: bool = False

    def __post_init__(self) -> None:
        positive("block ", expansion=self.expansion, groups=self.groups, base_width=self.base_width)
        if len(self.kernels) < 2 or any(k % 2 == 0 or k < 1 for k in self.kernels):
            raise UserError(f"block kernels: got {self.kernels}, expected two or more odd sizes such as (3, 3)")
        if not 0 <= self.stride_at < len(self.kernels):
            raise UserError(f"block stride_at: got {self.stride_at}, expected 0 to {len(self.kernels) - 1}")
        if self.shortcut not in SHORTCUTS:
            raise UserError(f"block shortcut: got {self.shortcut!r}, expected one of {', '.join(SHORTCUTS)}")

    def convs(
        self, in_channels: int, out_channels: int, stride: int = 1, first_dilation: int = 1, dilation: int = 1
    ) -> tuple[Conv, ...]:
        """The convolutions of one block in order.

        Up to the one at `stride_at` they see the input's grid (`first_dilation`), after it the output's (`dilation`).
        """
        width = int(out_channels // self.expansion * (self.base_width / 64)) * self.groups
        convs = []
        for i, kernel in enumerate(self.kernels):
            last = i == len(self.kernels) - 1
            convs.append(
                Conv(
                    in_channels=in_channels if i == 0 else width,
                    out_channels=out_channels if last else width,
                    kernel_size=kernel,
                    stride=stride if i == self.stride_at else 1,
                    dilation=1 if kernel == 1 else first_dilation if i <= self.stride_at else dilation,
                    groups=self.groups if kernel > 1 else 1,
                    bias=self.bias,
                    folded=self.folded and not (self.preactivation and last),
                )
            )
        return tuple(convs)

    def projection(self, in_channels: int, out_channels: int, stride: int = 1, replaced: int = 1) -> Conv | None:
        """The 1x1 convolution on the shortcut of one block; None where the shortcut has no parameters.

        A stride that dilation `replaced` leaves the block its projection, or weights would not fit both networks.
        """
        if self.residual and self.shortcut == "zero_pad" and in_channels > out_channels:
            got = f"{in_channels} to {out_channels} channels"
            raise UserError(f"block shortcut zero_pad: got {got}, expected no fewer than before")
        changes = stride * replaced != 1 or in_channels != out_channels
        if not self.residual or self.shortcut == "zero_pad" or not (changes or self.shortcut == "projection_always"):
            return None
        folded = self.folded and self.shortcut_norm
        return Conv(in_channels, out_channels, kernel_size=1, stride=1 if self.pooled else stride, folded=folded)

    @property
    def pooled(self) -> bool:
        """Whether the shortcut averages before it projects (ResNet-D)."""
        return self.shortcut == "pooled_projection"


BASIC = Block(kernels=(3, 3))
BOTTLENECK = Block(kernels=(1, 3, 1), expansion=4, stride_at=1)
PREACT_BASIC = Block(kernels=(3, 3), preactivation=True, shortcut_norm=False)
PREACT_BOTTLENECK = Block(kernels=(1, 3, 1), expansion=4, preactivation=True, shortcut_norm=False)


@dataclass(frozen=True)
class Stem:
    """The layers before the first block.

    Attributes:
        convs: (channels, kernel size, stride) of each convolution; between them stand BN and ReLU.
        max_pool: a 3x3 max-pool of stride 2 at the end.
        norm: BN and ReLU behind the last convolution: in an attribute of their own (`bn1`), `inside` the stem's
            Sequential, or `none` (pre-activation networks: the first block has them).
        name: the attribute of the convolution, or of the Sequential where there is more than a convolution in it.
        bias: bias in the convolutions.
    """

    convs: tuple[tuple[int, int, int], ...]
    max_pool: bool = False
    norm: Norm = "after"
    name: str = "conv1"
    bias: bool = False

    def __post_init__(self) -> None:
        if not self.convs or any(kernel % 2 == 0 for _, kernel, _ in self.convs):
            raise UserError(f"stem convs: got {self.convs}, expected one or more (channels, odd kernel size, stride)")
        for channels, kernel, stride in self.convs:
            positive("stem convs ", channels=channels, kernel=kernel, stride=stride)
        if self.norm not in NORMS:
            raise UserError(f"stem norm: got {self.norm!r}, expected one of {', '.join(NORMS)}")

    def layers(self, in_channels: int, folded: bool = False) -> tuple[Conv, ...]:
        """The convolutions in order; `folded` as in `Block`."""
        inputs = (in_channels, *(channels for channels, _, _ in self.convs))
        normed = len(self.convs) - (self.norm == "none")
        return tuple(
            Conv(inputs[i], out, kernel, stride, bias=self.bias, folded=folded and i < normed)
            for i, (out, kernel, stride) in enumerate(self.convs)
        )

    @property
    def channels(self) -> int:
        return self.convs[-1][0]

    @property
    def stride(self) -> int:
        stride = 2 if self.max_pool else 1
        for _, _, s in self.convs:
            stride *= s
        return stride


IMAGENET_STEM = Stem(convs=((64, 7, 2),), max_pool=True)
DEEP_STEM = Stem(convs=((32, 3, 2), (32, 3, 1), (64, 3, 1)), max_pool=True)
CIFAR_STEM = Stem(convs=((16, 3, 1),))
PREACT_STEM = Stem(convs=((16, 3, 1),), norm="none")


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution: `channels` (before the block's expansion), how many, and the stride of the first.

    With `transition` a plain 3x3 convolution with BN and ReLU comes first and takes the stride and the change of
    channels, so that every block is an identity block.
    """

    channels: int
    blocks: int
    stride: int = 1
    transition: bool = False

    def __post_init__(self) -> None:
        positive("stage ", channels=self.channels, blocks=self.blocks, stride=self.stride)


@dataclass(frozen=True)
class BlockLayout:
    """One residual block, resolved. `name` is its path in the network: `layer1.0`, or `res4`."""

    name: str
    in_channels: int
    out_channels: int
    stride: int
    first_dilation: int
    dilation: int


@dataclass(frozen=True)
class StageLayout:
    """One stage, resolved. `name` is the attribute that holds its blocks (None: each block is an attribute itself).

    `transition` is the plain convolution before the blocks, with the names of it and its BatchNorm; `stride` is the
    network's stride at the stage's output.
    """

    name: str | None
    blocks: tuple[BlockLayout, ...]
    transition: Conv | None
    transition_names: tuple[str, str]
    channels: int
    stride: int


@dataclass(frozen=True)
class ResNetSpec:
    """One network.

    Attributes:
        block_name: how blocks are called, from `stage` (1, 2, …), `block` (0, 1, … in the stage) and `n` (counted
            through the network from `first_block`). With a dot, the first part is the Sequential that holds the stage.
        input_size: height and width that the network was made for; any size works.
        init: `torchvision` (convolutions Kaiming normal, fan out) or `pytorch` (each layer's default).
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
    init: Init = "torchvision"
    block_name: str = "layer{stage}.{block}"
    first_block: int = 1
    features_only: bool = False
    output_stride: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        positive(
            f"{self.name}: ", num_classes=self.num_classes, in_channels=self.in_channels, input_size=self.input_size
        )
        if not self.stages:
            raise UserError(f"{self.name}: stages: got {self.stages!r}, expected one or more")
        if self.init not in INITS:
            raise UserError(f"{self.name}: init: got {self.init!r}, expected one of {', '.join(INITS)}")
        if self.output_stride is not None and self.output_stride not in self.output_strides:
            choices = ", ".join(str(s) for s in self.output_strides)
            raise UserError(f"{self.name}: output_stride: got {self.output_stride!r}, expected one of {choices}")
        names = self.names()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{self.name}: names: got {', '.join(twice)} twice, expected another name for each part")

    def names(self) -> list[str]:
        """The attributes of the network that hold layers, in order."""
        names = [self.stem.name, *(["bn1"] if self.stem.norm == "after" else [])]
        for stage in self.layout():
            names += stage.transition_names if stage.transition else ()
            names += [stage.name] if stage.name is not None else [block.name for block in stage.blocks]
        return [*names, *(["bn"] if self.block.preactivation else []), "fc"]

    @property
    def output_strides(self) -> tuple[int, ...]:
        """The strides that the last stage can be given, the network's own first."""
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

    def layout(self) -> tuple[StageLayout, ...]:
        """Every stage and block with its channels, stride, dilation and name.

        Where dilation replaces a stride, everything behind the strided convolution is dilated by it: at `output_stride`
        8 the outputs at every fourth place are those of the network at 32 (Chen et al. 2017, section 3.1).
        """
        limit = self.output_stride or self.output_strides[0]
        channels, total, dilation, n = self.stem.channels, self.stem.stride, 1, self.first_block
        stages = []
        for s, stage in enumerate(self.stages, 1):
            out = stage.channels * self.block.expansion
            first_dilation, stride = dilation, stage.stride
            if total * stride > limit:
                dilation, stride = dilation * stride, 1
            total *= stride
            transition = (
                Conv(channels, out, 3, stride, first_dilation, bias=self.block.bias, folded=self.block.folded)
                if stage.transition
                else None
            )
            if transition:
                channels, stride, first_dilation = out, 1, dilation
            blocks = []
            for b in range(stage.blocks):
                name = self.block_name.format(stage=s, block=b, n=n)
                n += 1
                blocks.append(BlockLayout(name, channels, out, stride, first_dilation, dilation))
                channels, stride, first_dilation = out, 1, dilation
            holder = blocks[0].name.split(".")[0] if "." in self.block_name else None
            stages.append(StageLayout(holder, tuple(blocks), transition, (f"conv{s}", f"bn{s}"), out, total))
        return tuple(stages)


def _imagenet(name: str, block: Block, depths: tuple[int, ...], source: str, stem: Stem = IMAGENET_STEM) -> ResNetSpec:
    stages = tuple(Stage(64 << i, n, stride=2 if i else 1) for i, n in enumerate(depths))
    return ResNetSpec(name, stem, stages, block, source=source)


def _cifar(name: str, block: Block, depth: int, source: str, width: int = 1) -> ResNetSpec:
    stages = tuple(Stage(16 * width << i, depth, stride=2 if i else 1) for i in range(3))
    stem = PREACT_STEM if block.preactivation else CIFAR_STEM
    return ResNetSpec(name, stem, stages, block, num_classes=10, input_size=32, source=source)


def _bottleneck(groups: int = 1, base_width: int = 64) -> Block:
    return dataclasses.replace(BOTTLENECK, groups=groups, base_width=base_width)


_OPTION_A = dataclasses.replace(BASIC, shortcut="zero_pad")
_RESNET = "He et al. 2016a; torchvision"
_RESNEXT = "Xie et al. 2017; torchvision"
_WIDE = "Zagoruyko and Komodakis 2016; torchvision"
_CIFAR = "He et al. 2016a, section 4.2"
_PREACT = "He et al. 2016b"
_WRN = "Zagoruyko and Komodakis 2016"

NETWORKS: dict[str, ResNetSpec] = {
    spec.name: spec
    for spec in (
        _imagenet("resnet18", BASIC, (2, 2, 2, 2), _RESNET),
        _imagenet("resnet34", BASIC, (3, 4, 6, 3), _RESNET),
        _imagenet("resnet50", BOTTLENECK, (3, 4, 6, 3), _RESNET),
        _imagenet("resnet101", BOTTLENECK, (3, 4, 23, 3), _RESNET),
        _imagenet("resnet152", BOTTLENECK, (3, 8, 36, 3), _RESNET),
        _imagenet("resnext50_32x4d", _bottleneck(groups=32, base_width=4), (3, 4, 6, 3), _RESNEXT),
        _imagenet("resnext101_32x8d", _bottleneck(groups=32, base_width=8), (3, 4, 23, 3), _RESNEXT),
        _imagenet("resnext101_64x4d", _bottleneck(groups=64, base_width=4), (3, 4, 23, 3), _RESNEXT),
        _imagenet("wide_resnet50_2", _bottleneck(base_width=128), (3, 4, 6, 3), _WIDE),
        _imagenet("wide_resnet101_2", _bottleneck(base_width=128), (3, 4, 23, 3), _WIDE),
        _imagenet(
            "resnet50d",
            dataclasses.replace(BOTTLENECK, shortcut="pooled_projection"),
            (3, 4, 6, 3),
            "He et al. 2019; timm",
            stem=DEEP_STEM,
        ),
        _cifar("cifar_resnet20", _OPTION_A, 3, _CIFAR),
        _cifar("cifar_resnet32", _OPTION_A, 5, _CIFAR),
        _cifar("cifar_resnet44", _OPTION_A, 7, _CIFAR),
        _cifar("cifar_resnet56", _OPTION_A, 9, _CIFAR),
        _cifar("cifar_resnet110", _OPTION_A, 18, _CIFAR),
        _cifar("preact_resnet110", PREACT_BASIC, 18, _PREACT),
        _cifar("preact_resnet164", PREACT_BOTTLENECK, 18, _PREACT),
        _cifar("wrn_28_10", PREACT_BASIC, 4, _WRN, width=10),
        _cifar("wrn_40_4", PREACT_BASIC, 6, _WRN, width=4),
        ResNetSpec(
            "tutorial_net",
            Stem(convs=((64, 3, 1),), bias=True),
            (Stage(64, 3), Stage(128, 3, stride=2, transition=True), Stage(256, 3, stride=2, transition=True)),
            dataclasses.replace(BASIC, bias=True),
            num_classes=10,
            input_size=32,
            init="pytorch",
            block_name="res{n}",
            source="a first tutorial on residual networks",
        ),
        ResNetSpec(
            "tutorial_resnet",
            Stem(convs=((64, 3, 1),), norm="inside", name="layer1"),
            (Stage(64, 1), Stage(128, 1, stride=2), Stage(128, 1)),
            BASIC,
            num_classes=10,
            input_size=32,
            init="pytorch",
            block_name="layer{n}",
            first_block=2,
            source="a second tutorial on residual networks",
        ),
    )
}


def get(name: str | ResNetSpec, **changes: Any) -> ResNetSpec:
    """The description of a named network (or the one given), with fields changed: `get("resnet50", num_classes=10)`.

    Fields of `Block` may be given too: `get("resnet50", residual=False, zero_init_last=True)`.

    Raises:
        UserError: no such network or field, or a value that the field cannot take.
    """
    if isinstance(name, str):
        if name not in NETWORKS:
            near = difflib.get_close_matches(name, NETWORKS, n=3, cutoff=0.5) or NETWORKS
            raise UserError(f"unknown network {name!r}; nearest: {', '.join(near)} (`parity models` lists all)")
        name = NETWORKS[name]
    own = {f.name for f in dataclasses.fields(ResNetSpec)}
    in_block = {f.name for f in dataclasses.fields(Block)}
    if unknown := sorted(set(changes) - own - in_block):
        raise UserError(
            f"{name.name}: no option {', '.join(unknown)}; expected one of {', '.join(sorted(own | in_block))}"
        )
    block = dataclasses.replace(changes.pop("block", name.block), **{k: v for k, v in changes.items() if k in in_block})
    return dataclasses.replace(name, block=block, **{k: v for k, v in changes.items() if k in own})
