"""The two tutorial networks. No framework is imported."""

from __future__ import annotations

from ports.family import Family, image_inputs, image_size, image_sizes
from ports.tutorial.spec import TutorialSpec, layers

NETWORKS: dict[str, TutorialSpec] = {
    spec.name: spec
    for spec in (
        TutorialSpec("tutorial_net", "TutorialNet", (64, 128, 256), source="a first tutorial on residual networks"),
        TutorialSpec("tutorial_resnet", "TutorialResNet", (64, 128), source="a second tutorial on residual networks"),
    )
}

TUTORIAL_FAMILY = Family(
    name="tutorial",
    title="Networks of two tutorials",
    description=TutorialSpec,
    network=lambda spec: spec.network,
    networks=NETWORKS,
    layers=layers,
    size=image_size,
    inputs=image_inputs,
    takes_images=True,
    sizes=lambda spec: image_sizes(layers(spec)),
)
