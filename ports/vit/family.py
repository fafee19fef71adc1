"""The named Vision Transformers. No framework is imported."""

from __future__ import annotations

import dataclasses
from math import isqrt

from ports.family import Family, Size, image_inputs, image_size
from ports.vit.spec import ViTSpec, layers

SOURCE = "Dosovitskiy et al. 2021, table 1; torchvision"

NETWORKS: dict[str, ViTSpec] = {
    spec.name: spec
    for spec in (
        ViTSpec("vit_b_16", patch_size=16, width=768, heads=12, hidden=3072, depth=12, source=SOURCE),
        ViTSpec("vit_b_32", patch_size=32, width=768, heads=12, hidden=3072, depth=12, source=SOURCE),
        ViTSpec("vit_l_16", patch_size=16, width=1024, heads=16, hidden=4096, depth=24, source=SOURCE),
    )
}


def sizes(spec: ViTSpec) -> tuple[Size, ...]:
    return (
        Size("num_classes", "classes", "heads.head.weight", 0),
        Size("in_channels", "input channels", "conv_proj.weight", 1),
        # There is one position for the class token, and one for each patch of a square.
        Size(
            "input_size",
            "pixels a side",
            "encoder.pos_embedding",
            1,
            value=lambda positions: spec.patch_size * isqrt(max(positions - 1, 0)),
        ),
    )


def reduced(spec: ViTSpec) -> ViTSpec:
    return dataclasses.replace(spec, depth=min(spec.depth, 2))


VIT_FAMILY = Family(
    name="vit",
    title="Vision transformers",
    description=ViTSpec,
    network=lambda spec: "VisionTransformer",
    networks=NETWORKS,
    layers=layers,
    size=image_size,
    inputs=image_inputs,
    takes_images=True,
    any_size=False,
    sizes=sizes,
    reduced=reduced,
)
