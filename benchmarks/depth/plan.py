"""What the study of depth trains: networks as rows, and how long on which images. No framework is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ports import families
from ports.family import Description

PLAIN, RESIDUAL, CONVOLUTIONS = "plain", "residual", "convolutions per block"
GROUPS = (PLAIN, RESIDUAL, CONVOLUTIONS)
FRAMEWORKS = ("pytorch", "nnx")


@dataclass(frozen=True)
class DepthNetwork:
    """A network of the study.

    Attributes:
        label: its name in plots and tables.
        group: the networks that it is compared with.
        number: layers with weights on the longest path, or convolutions in a block.
        network, changes: a named network, and changed fields of its description (`ports.create`).
    """

    label: str
    group: str
    number: int
    network: str
    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def spec(self) -> Description:
        return families.get(self.network, **self.changes)


DEPTHS = (20, 56, 110)
# The exercise of a tutorial on residual networks: more convolutions in a block. Narrower than the tutorial's network.
NETWORKS: dict[str, DepthNetwork] = {
    row.label: row
    for row in (
        *(DepthNetwork(f"plain-{n}", PLAIN, n, f"cifar_resnet{n}", {"residual": False}) for n in DEPTHS),
        *(DepthNetwork(f"residual-{n}", RESIDUAL, n, f"cifar_resnet{n}") for n in DEPTHS),
        *(
            DepthNetwork(f"convs-{n}", CONVOLUTIONS, n, "tutorial_resnet", {"convs": n, "widths": (32, 64)})
            for n in (1, 2, 3, 4)
        ),
    )
}


@dataclass(frozen=True)
class DepthPlan:
    """How long each network is trained, and on what.

    Attributes:
        steps: of SGD.
        batch: images in a step.
        size: height and width in pixels. Images of CIFAR-10 have 32; at 16 each pixel is the mean of four.
        exact_steps: the first steps, taken in float64 in both frameworks, which must agree.
        test_every: steps between two looks at the test images, and at the gradient of each layer.
        test_images: how many of the test images.
        rate, momentum, decay: of SGD; the rate stays the same.
        seed: of the initial weights and of the order of the images.
    """

    steps: int
    batch: int
    size: int
    exact_steps: int = 3
    test_every: int = 100
    test_images: int = 1000
    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-4
    seed: int = 0


# By device: a plan that ends within 40 minutes on two CPU cores, and the paper's images and batch on a GPU.
PLANS = {
    "cpu": DepthPlan(steps=800, batch=32, size=16),
    "gpu": DepthPlan(steps=4000, batch=128, size=32, test_every=400, test_images=10_000, rate=0.1),
}


def plan_for(device: str, **given: float | None) -> DepthPlan:
    """Return the plan of a device, with other values where they are given."""
    return replace(PLANS[device], **{name: value for name, value in given.items() if value is not None})
