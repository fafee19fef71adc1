"""The tutorial networks in PyTorch, NCHW. Read beside nnx.py and linen.py: the same classes in the same order."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ports.tutorial.spec import TutorialSpec

Image = Float[Tensor, "batch channels height width"]
Features = Float[Tensor, "batch _ _ _"]  # a layer's output: channels and size may differ


def conv_bn(
    in_channels: int, out_channels: int, size: int = 3, stride: int = 1, bias: bool = False, folded: bool = False
) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution that keeps the size at stride 1, and its BatchNorm; `folded`: the convolution alone."""
    conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=bias or folded)
    return conv, nn.Identity() if folded else nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1)


class ResidualBlock(nn.Module):
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
        downsample: nn.Module | None = None,
        bias: bool = False,
        convs: int = 2,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, out_channels, 3, stride, bias, folded)
        self.conv2, self.bn2 = conv_bn(out_channels, out_channels, 3, 1, bias, folded) if convs > 1 else (None, None)
        more: list[nn.Module] = []
        for _ in range(convs - 2):
            more += [nn.ReLU(), *conv_bn(out_channels, out_channels, 3, 1, bias, folded)]
        self.more = nn.Sequential(*more) if more else None
        if downsample is None and (stride != 1 or in_channels != out_channels):
            downsample = nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride, folded=folded))
        self.downsample = downsample

    def forward(self, x: Image) -> Features:
        out = self.bn1(self.conv1(x))
        if self.conv2 is not None and self.bn2 is not None:
            out = self.bn2(self.conv2(F.relu(out)))
        if self.more is not None:
            out = self.more(out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class TutorialNet(nn.Module):
    """Float images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, spec: TutorialSpec) -> None:
        super().__init__()
        self.spec, (a, b, c) = spec, spec.widths
        convs, folded = spec.convs, spec.folded
        self.conv1, self.bn1 = conv_bn(spec.in_channels, a, bias=True, folded=folded)
        self.res1 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded)
        self.res2 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded)
        self.res3 = ResidualBlock(a, a, bias=True, convs=convs, folded=folded)
        self.conv2, self.bn2 = conv_bn(a, b, stride=2, bias=True, folded=folded)
        self.res4 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded)
        self.res5 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded)
        self.res6 = ResidualBlock(b, b, bias=True, convs=convs, folded=folded)
        self.conv3, self.bn3 = conv_bn(b, c, stride=2, bias=True, folded=folded)
        self.res7 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded)
        self.res8 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded)
        self.res9 = ResidualBlock(c, c, bias=True, convs=convs, folded=folded)
        self.fc = nn.Linear(c, spec.num_classes)

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.res3(self.res2(self.res1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.res6(self.res5(self.res4(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.res9(self.res8(self.res7(x)))
        return self.fc(x.mean(dim=(2, 3)))


class TutorialResNet(nn.Module):
    """Float images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, spec: TutorialSpec) -> None:
        super().__init__()
        self.spec, (narrow, wide) = spec, spec.widths
        convs, folded = spec.convs, spec.folded
        self.layer1 = nn.Sequential(*conv_bn(spec.in_channels, narrow, folded=folded), nn.ReLU())
        self.layer2 = ResidualBlock(narrow, narrow, convs=convs, folded=folded)
        self.layer3 = ResidualBlock(narrow, wide, stride=2, convs=convs, folded=folded)
        self.layer4 = ResidualBlock(wide, wide, convs=convs, folded=folded)
        self.fc = nn.Linear(wide, spec.num_classes)

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))
