"""The named residual networks, and other networks whose checkpoints are in use. No framework is imported."""

from __future__ import annotations

import dataclasses

from ports.family import Family, image_inputs, image_size, image_sizes
from ports.resnet.config import READER
from ports.resnet.spec import BASIC, BOTTLENECK, PREACT_BASIC, PREACT_BOTTLENECK, Block, ResNetSpec, Stage, Stem, layers

IMAGENET_STEM = Stem(convs=((64, 7, 2),), max_pool=True)
DEEP_STEM = Stem(convs=((32, 3, 2), (32, 3, 1), (64, 3, 1)), max_pool=True)
CIFAR_STEM = Stem(convs=((16, 3, 1),))

OPTION_A = dataclasses.replace(BASIC, shortcut="zero_pad")
POOLED = dataclasses.replace(BOTTLENECK, shortcut="pooled_projection")

RESNET = "He et al. 2016a; torchvision"
RESNEXT = "Xie et al. 2017; torchvision"
WIDE = "Zagoruyko and Komodakis 2016; torchvision"
CIFAR = "He et al. 2016a, section 4.2"
PREACT = "He et al. 2016b"
WRN = "Zagoruyko and Komodakis 2016"


def imagenet(name: str, block: Block, depths: tuple[int, ...], source: str, stem: Stem = IMAGENET_STEM) -> ResNetSpec:
    stages = tuple(Stage(64 << i, n, stride=2 if i else 1) for i, n in enumerate(depths))
    return ResNetSpec(name, stem, stages, block, source=source)


def cifar(name: str, block: Block, depth: int, source: str, width: int = 1) -> ResNetSpec:
    stages = tuple(Stage(16 * width << i, depth, stride=2 if i else 1) for i in range(3))
    return ResNetSpec(name, CIFAR_STEM, stages, block, num_classes=10, input_size=32, source=source)


def wider(groups: int = 1, base_width: int = 64) -> Block:
    return dataclasses.replace(BOTTLENECK, groups=groups, base_width=base_width)


NETWORKS: dict[str, ResNetSpec] = {
    spec.name: spec
    for spec in (
        imagenet("resnet18", BASIC, (2, 2, 2, 2), RESNET),
        imagenet("resnet34", BASIC, (3, 4, 6, 3), RESNET),
        imagenet("resnet50", BOTTLENECK, (3, 4, 6, 3), RESNET),
        imagenet("resnet101", BOTTLENECK, (3, 4, 23, 3), RESNET),
        imagenet("resnet152", BOTTLENECK, (3, 8, 36, 3), RESNET),
        imagenet("resnext50_32x4d", wider(groups=32, base_width=4), (3, 4, 6, 3), RESNEXT),
        imagenet("resnext101_32x8d", wider(groups=32, base_width=8), (3, 4, 23, 3), RESNEXT),
        imagenet("resnext101_64x4d", wider(groups=64, base_width=4), (3, 4, 23, 3), RESNEXT),
        imagenet("wide_resnet50_2", wider(base_width=128), (3, 4, 6, 3), WIDE),
        imagenet("wide_resnet101_2", wider(base_width=128), (3, 4, 23, 3), WIDE),
        imagenet("resnet50d", POOLED, (3, 4, 6, 3), "He et al. 2019; timm", DEEP_STEM),
        cifar("cifar_resnet20", OPTION_A, 3, CIFAR),
        cifar("cifar_resnet32", OPTION_A, 5, CIFAR),
        cifar("cifar_resnet44", OPTION_A, 7, CIFAR),
        cifar("cifar_resnet56", OPTION_A, 9, CIFAR),
        cifar("cifar_resnet110", OPTION_A, 18, CIFAR),
        cifar("cifar_resnet1202", OPTION_A, 200, CIFAR),
        cifar("preact_resnet110", PREACT_BASIC, 18, PREACT),
        cifar("preact_resnet164", PREACT_BOTTLENECK, 18, PREACT),
        cifar("wrn_28_10", PREACT_BASIC, 4, WRN, width=10),
        cifar("wrn_40_4", PREACT_BASIC, 6, WRN, width=4),
    )
}


POOLED_BASIC = dataclasses.replace(BASIC, shortcut="pooled_projection")
TIMM = "timm, resnet.py"
KUANGLIU = "kuangliu/pytorch-cifar, resnet.py"
OPTION_B = "akamaster/pytorch_resnet_cifar10 (option B); chenyaofo/pytorch-cifar-models"


def wide_cifar(name: str, block: Block, depths: tuple[int, ...]) -> ResNetSpec:
    """An ImageNet network after a stem of one 3x3 convolution."""
    small = imagenet(name, block, depths, KUANGLIU, Stem(convs=((64, 3, 1),)))
    return dataclasses.replace(small, num_classes=10, input_size=32)


VARIANTS: dict[str, ResNetSpec] = {
    spec.name: spec
    for spec in (
        imagenet("resnet18d", POOLED_BASIC, (2, 2, 2, 2), TIMM, DEEP_STEM),
        imagenet("resnet34d", POOLED_BASIC, (3, 4, 6, 3), TIMM, DEEP_STEM),
        imagenet("resnet26d", POOLED, (2, 2, 2, 2), TIMM, DEEP_STEM),
        imagenet("resnet101d", POOLED, (3, 4, 23, 3), TIMM, DEEP_STEM),
        imagenet("resnet152d", POOLED, (3, 8, 36, 3), TIMM, DEEP_STEM),
        imagenet("resnet200d", POOLED, (3, 24, 36, 3), TIMM, DEEP_STEM),
        imagenet("resnet26", BOTTLENECK, (2, 2, 2, 2), TIMM),
        imagenet("resnet200", BOTTLENECK, (3, 24, 36, 3), f"Flax's ImageNet example, models.py; {TIMM}"),
        *(cifar(f"cifar_resnet{6 * n + 2}_b", BASIC, n, OPTION_B) for n in (3, 5, 7, 9, 18)),
        wide_cifar("cifar_wide_resnet18", BASIC, (2, 2, 2, 2)),
        wide_cifar("cifar_wide_resnet34", BASIC, (3, 4, 6, 3)),
        wide_cifar("cifar_wide_resnet50", BOTTLENECK, (3, 4, 6, 3)),
        wide_cifar("cifar_wide_resnet101", BOTTLENECK, (3, 4, 23, 3)),
        wide_cifar("cifar_wide_resnet152", BOTTLENECK, (3, 8, 36, 3)),
    )
}

LARGE = 30  # blocks of a network for ImageNet
DEEP = 100  # blocks of a network for CIFAR, whose images are small


def reduced(spec: ResNetSpec) -> ResNetSpec:
    """Two blocks in each stage of a large network: the first changes the shape, the second does not."""
    if spec.number_of_blocks < (DEEP if spec.input_size <= 32 else LARGE):
        return spec
    stages = tuple(dataclasses.replace(stage, blocks=min(stage.blocks, 2)) for stage in spec.stages)
    return dataclasses.replace(spec, stages=stages)


RESNET_FAMILY = Family(
    name="resnet",
    title="ResNets",
    description=ResNetSpec,
    network=lambda spec: "ResNet",
    networks=NETWORKS,
    layers=layers,
    size=image_size,
    inputs=image_inputs,
    takes_images=True,
    variants=VARIANTS,
    parts=("block",),
    sizes=lambda spec: image_sizes(layers(spec)),
    headless=lambda spec: dataclasses.replace(spec, features_only=True),
    reduced=reduced,
    config=READER,
)
