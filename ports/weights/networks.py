"""The layers of a described network: their PyTorch names, types and shapes, from the description alone.

No framework is loaded: a checkpoint is recognised by what stands here. Besides the named networks there are `VARIANTS`:
descriptions of networks whose checkpoints circulate but which have no port of their own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ports.resnet import spec as specs
from ports.resnet.spec import BASIC, BOTTLENECK, NETWORKS, Conv, ResNetSpec, Stage, Stem
from ports.weights.layers import COUNTER

Shape = tuple[int, ...]
POOLED_BASIC = dataclasses.replace(BASIC, shortcut="pooled_projection")
POOLED = dataclasses.replace(BOTTLENECK, shortcut="pooled_projection")


@dataclass(frozen=True)
class Layer:
    """One layer with tensors.

    Attributes:
        role: what it is in the network, as dialects name it: `stem.conv`, `conv`, `shortcut.bn`, `fc`, …
        hub: its PyTorch name.
        type: whose rule in `ports.weights.layers` it has.
        shapes: of its tensors in the hub form.
        fields: what a dialect's template may use: `at` (the block's PyTorch name), `stage` and `block` (from 0), `n`
            (blocks through the network, from 0), `i` (layers of this role in the block, from 0), `kind` (of block, as
            Flax's example calls it).
    """

    role: str
    hub: str
    type: str
    shapes: dict[str, Shape]
    fields: dict[str, Any] = field(default_factory=dict)


def _conv(role: str, name: str, conv: Conv, **fields: Any) -> Layer:
    window = (conv.kernel_size, conv.kernel_size)
    shapes: dict[str, Shape] = {"weight": (conv.out_channels, conv.in_channels // conv.groups, *window)}
    return Layer(role, name, "Conv", shapes | ({"bias": (conv.out_channels,)} if conv.bias else {}), fields)


def _bn(role: str, name: str, channels: int, **fields: Any) -> Layer:
    names = ("weight", "bias", "running_mean", "running_var")
    return Layer(role, name, "BatchNorm", {**dict.fromkeys(names, (channels,)), COUNTER: ()}, fields)


def layers(spec: ResNetSpec) -> list[Layer]:
    """All layers with tensors, in the order of PyTorch's state_dict."""
    return list(_layers(spec))


def _layers(spec: ResNetSpec) -> Iterator[Layer]:
    convs, stem, folded = spec.stem.layers(spec.in_channels, spec.block.folded), spec.stem, spec.block.folded
    inside = stem.norm == "inside"
    sequential = len(convs) > 1 or inside
    for i, conv in enumerate(convs):
        yield _conv("stem.conv", f"{stem.name}.{3 * i}" if sequential else stem.name, conv, i=i)
        if (inside or i < len(convs) - 1) and not folded:
            yield _bn("stem.bn", f"{stem.name}.{3 * i + 1}", conv.out_channels, i=i)
    if stem.norm == "after" and not folded:
        yield _bn("bn1", "bn1", stem.channels)
    n = 0
    for s, stage in enumerate(spec.layout()):
        if stage.transition is not None:
            conv_name, bn_name = stage.transition_names
            yield _conv("transition.conv", conv_name, stage.transition, stage=s)
            if not folded:
                yield _bn("transition.bn", bn_name, stage.channels, stage=s)
        for b, block in enumerate(stage.blocks):
            kind = "BottleneckResNetBlock" if spec.block.expansion > 1 else "ResNetBlock"
            place = {"at": block.name, "stage": s, "block": b, "n": n, "kind": kind}
            n += 1
            inner = spec.block.convs(
                block.in_channels, block.out_channels, block.stride, block.first_dilation, block.dilation
            )
            for i, conv in enumerate(inner):
                pre = spec.block.preactivation
                own = _conv("conv", f"{block.name}.conv{i + 1}", conv, i=i, **place)
                channels = conv.in_channels if pre else conv.out_channels
                bn = _bn("bn", f"{block.name}.bn{i + 1}", channels, i=i, **place)
                if folded and not (pre and i == 0):
                    yield own
                else:
                    yield from (bn, own) if pre else (own, bn)
            replaced = block.dilation // block.first_dilation
            shortcut = spec.block.projection(block.in_channels, block.out_channels, block.stride, replaced)
            if shortcut is not None:
                at = 1 if spec.block.pooled else 0
                yield _conv("shortcut.conv", f"{block.name}.downsample.{at}", shortcut, i=0, **place)
                if spec.block.shortcut_norm and not folded:
                    yield _bn("shortcut.bn", f"{block.name}.downsample.{at + 1}", block.out_channels, i=1, **place)
    if not spec.features_only:
        if spec.block.preactivation:
            yield _bn("last.bn", "bn", spec.features)
        shapes = {"weight": (spec.num_classes, spec.features), "bias": (spec.num_classes,)}
        yield Layer("fc", "fc", "Linear", shapes)


def _deep(name: str, block: specs.Block, depths: tuple[int, ...], **changes: Any) -> ResNetSpec:
    base = dataclasses.replace(NETWORKS["resnet50d"], name=name, block=block, **changes)
    return dataclasses.replace(base, stages=tuple(Stage(64 << i, n, 2 if i else 1) for i, n in enumerate(depths)))


def _plain(name: str, block: specs.Block, depths: tuple[int, ...], source: str) -> ResNetSpec:
    stages = tuple(Stage(64 << i, n, 2 if i else 1) for i, n in enumerate(depths))
    return dataclasses.replace(NETWORKS["resnet50"], name=name, block=block, stages=stages, source=source)


def _small(name: str, block: specs.Block, depths: tuple[int, ...]) -> ResNetSpec:
    stages = tuple(Stage(64 << i, n, 2 if i else 1) for i, n in enumerate(depths))
    stem = Stem(convs=((64, 3, 1),))
    return ResNetSpec(
        name, stem, stages, block, num_classes=10, input_size=32, source="kuangliu/pytorch-cifar, resnet.py"
    )


def _option_b(depth: int) -> ResNetSpec:
    base = NETWORKS[f"cifar_resnet{depth}"]
    source = "akamaster/pytorch_resnet_cifar10 (option B); chenyaofo/pytorch-cifar-models"
    return dataclasses.replace(base, name=f"{base.name}_b", block=BASIC, source=source)


VARIANTS: dict[str, ResNetSpec] = {
    spec.name: spec
    for spec in (
        _deep("resnet18d", POOLED_BASIC, (2, 2, 2, 2)),
        _deep("resnet34d", POOLED_BASIC, (3, 4, 6, 3)),
        _deep("resnet26d", POOLED, (2, 2, 2, 2)),
        _deep("resnet101d", POOLED, (3, 4, 23, 3)),
        _deep("resnet152d", POOLED, (3, 8, 36, 3)),
        _deep("resnet200d", POOLED, (3, 24, 36, 3)),
        _plain("resnet26", BOTTLENECK, (2, 2, 2, 2), "timm, resnet.py"),
        _plain("resnet200", BOTTLENECK, (3, 24, 36, 3), "Flax's ImageNet example, models.py; timm, resnet.py"),
        *(_option_b(depth) for depth in (20, 32, 44, 56, 110)),
        _small("cifar_wide_resnet18", BASIC, (2, 2, 2, 2)),
        _small("cifar_wide_resnet34", BASIC, (3, 4, 6, 3)),
        _small("cifar_wide_resnet50", BOTTLENECK, (3, 4, 6, 3)),
        _small("cifar_wide_resnet101", BOTTLENECK, (3, 4, 23, 3)),
        _small("cifar_wide_resnet152", BOTTLENECK, (3, 8, 36, 3)),
    )
}


def known() -> dict[str, ResNetSpec]:
    """Every description that a checkpoint may be recognised as."""
    return {**NETWORKS, **VARIANTS}
