"""The named segmentation networks, and other networks whose checkpoints are in use. No framework is imported."""

from __future__ import annotations

import dataclasses

from ports.family import Family, Size, image_inputs, image_size
from ports.objective import SEGMENTATION
from ports.segmentation.spec import SegmentationSpec, layers

FCN = "Long et al. 2015; torchvision"
DEEPLAB = "Chen et al. 2017; torchvision"
UNET = "Ronneberger et al. 2015; segmentation_models_pytorch"

RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)

NETWORKS: dict[str, SegmentationSpec] = {
    spec.name: spec
    for spec in (
        SegmentationSpec("fcn_resnet50", "fcn", RESNET50, source=FCN),
        SegmentationSpec("fcn_resnet101", "fcn", RESNET101, source=FCN),
        SegmentationSpec("deeplabv3_resnet50", "deeplabv3", RESNET50, source=DEEPLAB),
        SegmentationSpec("deeplabv3_resnet101", "deeplabv3", RESNET101, source=DEEPLAB),
        SegmentationSpec("unet_resnet34", "unet", (3, 4, 6, 3), bottleneck=False, auxiliary=False, source=UNET),
    )
}

# torchvision builds networks without the auxiliary head unless you ask for it.
VARIANTS: dict[str, SegmentationSpec] = {
    spec.name: spec
    for spec in (
        dataclasses.replace(whole, name=f"{whole.name}_no_aux", auxiliary=False)
        for whole in NETWORKS.values()
        if whole.auxiliary
    )
}


def sizes(spec: SegmentationSpec) -> tuple[Size, ...]:
    first, *_, last = (layer.torch for layer in layers(dataclasses.replace(spec, auxiliary=False)))
    return (
        Size("num_classes", "classes", f"{last}.weight", 0),
        Size("in_channels", "input channels", f"{first}.weight", 1),
    )


def reduced(spec: SegmentationSpec) -> SegmentationSpec:
    """Two blocks in each stage: the second is the first that is dilated by the whole stride."""
    first, second, third, fourth = (min(blocks, 2) for blocks in spec.depths)
    return dataclasses.replace(spec, depths=(first, second, third, fourth))


SEGMENTATION_FAMILY = Family(
    name="segmentation",
    title="Segmentation",
    description=SegmentationSpec,
    network=lambda spec: "UNet" if spec.head == "unet" else "SegmentationNet",
    networks=NETWORKS,
    layers=layers,
    size=image_size,
    inputs=image_inputs,
    takes_images=True,
    size_step=lambda spec: spec.size_step,
    variants=VARIANTS,
    sizes=sizes,
    objective=SEGMENTATION,
    reduced=reduced,
)
