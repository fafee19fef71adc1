"""Residual networks in PyTorch, NCHW. Read beside nnx.py and linen.py: the same classes in the same order.

Follows torchvision's resnet.py in names, shapes and initial distributions; differs: none (v1.5, stride on the 3x3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ports.resnet.spec import Block, BlockLayout, Conv, ResNetSpec

Image = Float[Tensor, "batch channels height width"]
Features = Float[Tensor, "batch _ _ _"]  # a layer's output: channels and size may differ


def conv2d(conv: Conv, *, zero: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


def batch_norm(channels: int, *, zero: bool = False, folded: bool = False) -> nn.Module:
    if folded:
        return nn.Identity()
    layer = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


class ZeroPad(nn.Module):
    """Option A: every `stride`-th pixel, and channels of zeros on both sides (He et al. 2016a, section 3.3)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Image) -> Features:
        before, after = self.extra // 2, self.extra - self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))


class DilatedAvgPool(nn.Module):
    """AvgPool2d(size, ceil_mode=True, count_include_pad=False) at every place, over values `dilation` apart."""

    def __init__(self, size: int, dilation: int) -> None:
        super().__init__()
        self.size, self.dilation = size, dilation

    def forward(self, x: Image) -> Image:
        far = (self.size - 1) * self.dilation
        ones = x.new_ones(x.shape[1], 1, self.size, self.size)
        inside = F.pad(torch.ones_like(x[:1, :1]), (0, far, 0, far))
        total = F.conv2d(F.pad(x, (0, far, 0, far)), ones, dilation=self.dilation, groups=x.shape[1])
        return total / F.conv2d(inside, ones[:1], dilation=self.dilation)


def avg_pool(layout: BlockLayout) -> nn.Module:
    if layout.replaced_stride > 1:
        return DilatedAvgPool(layout.replaced_stride, layout.first_dilation)
    return nn.AvgPool2d(layout.stride, ceil_mode=True, count_include_pad=False) if layout.stride > 1 else nn.Identity()


def downsample(layout: BlockLayout) -> nn.Module | None:
    """The layers on the shortcut; None for the identity, and without a shortcut."""
    block, conv = layout.block, layout.projection
    if conv is None:
        return ZeroPad(layout.extra_channels, layout.stride) if layout.zero_pads else None
    pool = [avg_pool(layout)] if block.shortcut == "pooled_projection" else []
    norm = [batch_norm(conv.out_channels, folded=block.folded)] if block.shortcut_norm else []
    return nn.Sequential(*pool, conv2d(conv), *norm)


class BasicBlock(nn.Module):
    """v1: 3x3 and 3x3 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, left)."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        block, (conv1, conv2) = layout.block, layout.convs
        self.conv1 = conv2d(conv1)
        self.bn1 = batch_norm(conv1.out_channels, folded=block.folded)
        self.conv2 = conv2d(conv2)
        self.bn2 = batch_norm(conv2.out_channels, zero=block.zero_init_last, folded=block.folded)
        self.downsample, self.residual = downsample(layout), block.residual

    def forward(self, x: Image) -> Features:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


class Bottleneck(nn.Module):
    """v1: 1x1, 3x3 and 1x1 convolution, each with BN; the shortcut is added before the last ReLU (figure 5, right)."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        block, (conv1, conv2, conv3) = layout.block, layout.convs
        self.conv1 = conv2d(conv1)
        self.bn1 = batch_norm(conv1.out_channels, folded=block.folded)
        self.conv2 = conv2d(conv2)
        self.bn2 = batch_norm(conv2.out_channels, folded=block.folded)
        self.conv3 = conv2d(conv3)
        self.bn3 = batch_norm(conv3.out_channels, zero=block.zero_init_last, folded=block.folded)
        self.downsample, self.residual = downsample(layout), block.residual

    def forward(self, x: Image) -> Features:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


class PreActBasicBlock(nn.Module):
    """v2: BN and ReLU come before each convolution (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        block, (conv1, conv2) = layout.block, layout.convs
        self.bn1 = batch_norm(conv1.in_channels)
        self.conv1 = conv2d(conv1)
        self.bn2 = batch_norm(conv2.in_channels, folded=block.folded)
        self.conv2 = conv2d(conv2, zero=block.zero_init_last)
        self.downsample, self.residual = downsample(layout), block.residual
        self.projects = layout.projection is not None

    def forward(self, x: Image) -> Features:
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(activated if self.projects else x))
        return out


class PreActBottleneck(nn.Module):
    """v2 of `Bottleneck`, as `PreActBasicBlock`."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        block, (conv1, conv2, conv3) = layout.block, layout.convs
        self.bn1 = batch_norm(conv1.in_channels)
        self.conv1 = conv2d(conv1)
        self.bn2 = batch_norm(conv2.in_channels, folded=block.folded)
        self.conv2 = conv2d(conv2)
        self.bn3 = batch_norm(conv3.in_channels, folded=block.folded)
        self.conv3 = conv2d(conv3, zero=block.zero_init_last)
        self.downsample, self.residual = downsample(layout), block.residual
        self.projects = layout.projection is not None

    def forward(self, x: Image) -> Features:
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(activated if self.projects else x))
        return out


def block_class(block: Block) -> type[nn.Module]:
    if block.preactivation:
        return PreActBottleneck if block.bottleneck else PreActBasicBlock
    return Bottleneck if block.bottleneck else BasicBlock


class ResNet(nn.Module):
    """The network of a `ResNetSpec`.

    It takes float images (batch, channels, height, width), and gives logits (batch, classes), or with `features_only` a
    tuple of every stage's output (batch, channels, height / stride, width / stride), the finest first.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec, block = spec, block_class(spec.block)
        preactivation, folded = spec.block.preactivation, spec.block.folded
        self.conv1 = stem(spec)
        self.bn1 = None if preactivation else batch_norm(spec.stem.channels, folded=folded)
        stages = [nn.Sequential(*(block(layout) for layout in stage.blocks)) for stage in spec.layout()]
        self.layer1, self.layer2, self.layer3, self.layer4 = (*stages, None, None, None)[:4]
        self.bn = batch_norm(spec.features) if preactivation and not spec.features_only else None
        self.fc = None if spec.features_only else nn.Linear(spec.features, spec.num_classes)

    def forward(self, x: Image) -> Float[Tensor, "batch classes"] | tuple[Features, ...]:
        x = self.conv1(x)
        if self.bn1 is not None:
            x = F.relu(self.bn1(x))
        if self.spec.stem.max_pool:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            if layer is not None:
                x = layer(x)
                features.append(x)
        if self.fc is None:
            return tuple(features)
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return self.fc(x.mean(dim=(2, 3)))


def stem(spec: ResNetSpec) -> nn.Module:
    """One convolution, or several with BN and ReLU between them."""
    layers: list[nn.Module] = []
    for conv in spec.stem_convs:
        layers += [conv2d(conv), batch_norm(conv.out_channels, folded=spec.block.folded), nn.ReLU()]
    return nn.Sequential(*layers[:-2]) if len(spec.stem_convs) > 1 else layers[0]
