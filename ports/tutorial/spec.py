"""Two small networks from tutorials on residual networks, as data. No framework is imported.

`TutorialNet`: after each of three convolutions come three identity blocks; every 3x3 convolution has a bias.
`TutorialResNet`: a stem and three blocks, of which the second has a projection; no convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ports.errors import UserError, require_positive
from ports.family import Layer, batch_norm_layer, conv_layer, linear_layer

Network = Literal["TutorialNet", "TutorialResNet"]
NETWORK_CLASSES: tuple[Network, ...] = ("TutorialNet", "TutorialResNet")


@dataclass(frozen=True)
class TutorialSpec:
    """One network.

    Attributes:
        network: the class that builds it.
        widths: three channels in a `TutorialNet`, two in a `TutorialResNet`.
        convs: 3x3 convolutions in a residual block.
        input_size: height and width that the network was made for; any size works.
        folded: for inference: each BatchNorm is part of the convolution before it (`ports.weights.known.fold`).
        source: where the network was published.
    """

    name: str
    network: Network
    widths: tuple[int, ...]
    convs: int = 2
    num_classes: int = 10
    in_channels: int = 3
    input_size: int = 32
    folded: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {"num_classes": self.num_classes, "in_channels": self.in_channels, "input_size": self.input_size}
        require_positive(f"{self.name}: ", convs=self.convs, **sizes, **{f"width {n}": n for n in self.widths})
        if self.network not in NETWORK_CLASSES:
            raise UserError(f"{self.name}: network: got {self.network!r}, expected {' or '.join(NETWORK_CLASSES)}")
        expected = 3 if self.network == "TutorialNet" else 2
        if len(self.widths) != expected:
            raise UserError(f"{self.name}: widths: got {self.widths}, expected {expected}")

    @property
    def number_of_blocks(self) -> int:
        return 9 if self.network == "TutorialNet" else 3


@dataclass(frozen=True)
class Convolution:
    """A convolution, as `ports.family.conv_layer` wants it."""

    in_channels: int
    out_channels: int
    kernel_size: int = 3
    bias: bool = False
    groups: int = 1


def layers(spec: TutorialSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""

    def pair(
        conv: str, norm: str, inputs: int, outputs: int, size: int = 3, bias: bool = False, ends_branch: bool = False
    ) -> Iterator[Layer]:
        yield conv_layer("tutorial.conv", conv, Convolution(inputs, outputs, size, bias or spec.folded))
        if not spec.folded:
            yield batch_norm_layer("tutorial.bn", norm, outputs, ends_branch=ends_branch)

    def block(name: str, inputs: int, outputs: int, bias: bool = False, projected: bool = False) -> Iterator[Layer]:
        first = inputs
        more = ((f"more.{i + 1}", f"more.{i + 2}") for i in range(0, 3 * spec.convs, 3))
        names = [("conv1", "bn1"), ("conv2", "bn2"), *more]
        for i, (conv, norm) in enumerate(names[: spec.convs], 1):
            last = i == spec.convs
            yield from pair(f"{name}.{conv}", f"{name}.{norm}", inputs, outputs, bias=bias, ends_branch=last)
            inputs = outputs
        if projected:
            yield from pair(f"{name}.downsample.0", f"{name}.downsample.1", first, outputs, size=1)

    if spec.network == "TutorialNet":
        for i, (inputs, outputs) in enumerate(zip((spec.in_channels, *spec.widths), spec.widths, strict=False), 1):
            yield from pair(f"conv{i}", f"bn{i}", inputs, outputs, bias=True)
            for n in range(3 * i - 2, 3 * i + 1):
                yield from block(f"res{n}", outputs, outputs, bias=True)
    else:
        narrow, wide = spec.widths
        yield from pair("layer1.0", "layer1.1", spec.in_channels, narrow)
        yield from block("layer2", narrow, narrow)
        yield from block("layer3", narrow, wide, projected=True)
        yield from block("layer4", wide, wide)
    yield linear_layer("fc", "fc", spec.widths[-1], spec.num_classes)
