"""Residual networks in PyTorch, NCHW. Read beside nnx.py and linen.py: the same classes in the same order.

Follows torchvision's resnet.py in names, shapes and initial distributions; differs: none (v1.5, stride on the 3x3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ports.errors import UserError
from ports.resnet import filtering
from ports.resnet import spec as specs
from ports.resnet.spec import Block, Conv, ResNetSpec

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

Image = Float[Tensor, "batch channels height width"]


class Conv2d(nn.Conv2d):
    """PyTorch's. On CPUs a window of one pixel takes every `stride`-th pixel first: its gradients are quicker so.

    And a window of 3 by 3 is filtered in fewer products where Inductor freezes the weights.
    """

    def forward(self, input: Image) -> Image:
        if filtering.pays(self, input):
            return filtering.convolve(input, self)
        (rows, columns), pixel = self.stride, self.kernel_size == (1, 1) and self.padding == (0, 0)
        if pixel and rows * columns > 1 and input.device.type == "cpu":
            return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias, groups=self.groups)
        return super().forward(input)


def conv2d(conv: Conv, init: str = "pytorch") -> nn.Conv2d:
    layer = Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias,
    )
    if init == "torchvision":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif init == "zeros":
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return layer


def batch_norm(channels: int, *, zero: bool = False, folded: bool = False) -> nn.Module:
    if folded:
        return nn.Identity()
    layer = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


def zero_pad(x: Image, channels: int, stride: int) -> Image:
    """Option A: every `stride`-th pixel, and channels of zeros on both sides (He et al. 2016a, section 3.3)."""
    extra = channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra // 2, extra - extra // 2))


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


def downsample(
    block: Block, in_channels: int, out_channels: int, stride: int, dilations: tuple[int, int], init: str
) -> nn.Sequential | None:
    """The layers on the shortcut; None where it has none: identity, or `zero_pad`."""
    replaced = dilations[1] // dilations[0]
    conv = block.projection(in_channels, out_channels, stride, replaced)
    if conv is None:
        return None
    layers: list[nn.Module] = [conv2d(conv, init)]
    if block.pooled:
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        layers.insert(0, DilatedAvgPool(replaced, dilations[0]) if replaced > 1 else pool)
    if block.shortcut_norm:
        layers.append(batch_norm(out_channels, folded=conv.folded))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """v1: convolution, BN, ReLU, …, convolution, BN, plus the shortcut, ReLU (He et al. 2016a, figures 2 and 5)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
        block: Block = specs.BASIC,
        init: str = "pytorch",
    ) -> None:
        super().__init__()
        self.out_channels, self.stride, self.block = out_channels, stride, block
        for i, conv in enumerate(block.convs(in_channels, out_channels, stride, first_dilation, dilation), 1):
            last = i == len(block.kernels)
            self.add_module(f"conv{i}", conv2d(conv, init))
            self.add_module(
                f"bn{i}", batch_norm(conv.out_channels, zero=last and block.zero_init_last, folded=conv.folded)
            )
        self.downsample = downsample(block, in_channels, out_channels, stride, (first_dilation, dilation), init)

    def forward(self, x: Image) -> Image:
        out = x
        for i in range(1, len(self.block.kernels) + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < len(self.block.kernels):
                out = F.relu(out)
        if self.block.residual:
            out = out + self.shortcut(x)
        return F.relu(out)

    def shortcut(self, x: Image) -> Image:
        if self.downsample is not None:
            return self.downsample(x)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class PreActBlock(nn.Module):
    """v2: BN, ReLU, convolution, …, plus the shortcut (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    bn1: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
        block: Block = specs.PREACT_BASIC,
        init: str = "pytorch",
    ) -> None:
        super().__init__()
        self.out_channels, self.stride, self.block = out_channels, stride, block
        for i, conv in enumerate(block.convs(in_channels, out_channels, stride, first_dilation, dilation), 1):
            last = i == len(block.kernels)
            self.add_module(f"bn{i}", batch_norm(conv.in_channels, folded=block.folded and i > 1))
            self.add_module(f"conv{i}", conv2d(conv, "zeros" if last and block.zero_init_last else init))
        self.downsample = downsample(block, in_channels, out_channels, stride, (first_dilation, dilation), init)

    def forward(self, x: Image) -> Image:
        out = activated = F.relu(self.bn1(x))
        for i in range(1, len(self.block.kernels) + 1):
            if i > 1:
                out = F.relu(getattr(self, f"bn{i}")(out))
            out = getattr(self, f"conv{i}")(out)
        return out + self.shortcut(x, activated) if self.block.residual else out

    def shortcut(self, x: Image, activated: Image) -> Image:
        if self.downsample is not None:
            return self.downsample(activated)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class ResNet(nn.Module):
    """The network that a `ResNetSpec` describes.

    Takes float images (batch, channels, height, width); gives logits (batch, classes), or with `features_only` a tuple
    of every stage's output (batch, channels, height / stride, width / stride), the finest first.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stages = spec.layout()
        stem = stem_layers(spec)
        self.add_module(spec.stem.name, nn.Sequential(*stem) if len(stem) > 1 else stem[0])
        if spec.stem.norm == "after":
            self.bn1 = batch_norm(spec.stem.channels, folded=spec.block.folded)
        block_class = PreActBlock if spec.block.preactivation else ResidualBlock
        for stage in self.stages:
            if stage.transition is not None:
                conv, bn = stage.transition_names
                self.add_module(conv, conv2d(stage.transition, spec.init))
                self.add_module(bn, batch_norm(stage.channels, folded=stage.transition.folded))
            blocks = {
                b.name: block_class(
                    b.in_channels, b.out_channels, b.stride, b.first_dilation, b.dilation, spec.block, spec.init
                )
                for b in stage.blocks
            }
            if stage.name is not None:
                self.add_module(stage.name, nn.Sequential(*blocks.values()))
            else:
                for name, block in blocks.items():
                    self.add_module(name, block)
        if not spec.features_only:
            if spec.block.preactivation:
                self.bn = batch_norm(spec.features)
            self.fc = nn.Linear(spec.features, spec.num_classes)

    def forward(self, x: Image) -> Float[Tensor, "batch classes"] | tuple[Image, ...]:
        x = getattr(self, self.spec.stem.name)(x)
        if self.spec.stem.norm == "after":
            x = F.relu(self.bn1(x))
        if self.spec.stem.max_pool:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            if stage.transition is not None:
                conv, bn = stage.transition_names
                x = F.relu(getattr(self, bn)(getattr(self, conv)(x)))
            for name in [stage.name] if stage.name is not None else [b.name for b in stage.blocks]:
                x = getattr(self, name)(x)
            features.append(x)
        if self.spec.features_only:
            return tuple(features)
        if self.spec.block.preactivation:
            x = F.relu(self.bn(x))
        return self.fc(x.mean(dim=(2, 3)))


def stem_layers(spec: ResNetSpec) -> list[nn.Module]:
    """Convolutions with BN and ReLU between them, and behind the last one where `norm` is `inside`."""
    layers: list[nn.Module] = []
    for conv in spec.stem.layers(spec.in_channels, spec.block.folded):
        layers += [conv2d(conv, spec.init), batch_norm(conv.out_channels, folded=conv.folded), nn.ReLU()]
    return layers if spec.stem.norm == "inside" else layers[:-2]


def skeleton(spec: ResNetSpec) -> ResNet:
    """The network without memory for its weights (on the meta device): to count and to look at shapes."""
    with torch.device("meta"):
        net = ResNet(specs.get(spec, init="pytorch"))  # on this device drawing from a normal distribution takes seconds
    net.spec = spec
    return net


def create(name: str | ResNetSpec, *, seed: int | None = 0, dtype: str = "float32", **changes: Any) -> ResNet:
    """A network with initial weights drawn from `seed`, in train mode; PyTorch's global generator is left as it was.

    Args:
        seed: None leaves every weight zero, for a network whose weights are written next.
        dtype: type of weights and activations; with bfloat16, BatchNorm's parameters and statistics stay float32.
        changes: fields of `ResNetSpec` or `Block`, as in `ports.resnet.spec.get`.

    Raises:
        UserError: unknown network, option or dtype.
    """
    spec = specs.get(name, **changes)
    if dtype not in DTYPES:
        raise UserError(f"{spec.name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if seed is None:
        net = skeleton(spec).to_empty(device="cpu")
        net.load_state_dict({k: torch.zeros_like(v) for k, v in net.state_dict().items()})
    else:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` seeds every GPU too
            net = ResNet(spec)
    net.to(DTYPES[dtype])
    if dtype == "bfloat16":
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    return net
