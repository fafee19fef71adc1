"""The named Transformers. No framework is imported."""

from __future__ import annotations

from ports.family import Family, Input, Shape, Size
from ports.transformer.spec import EncoderSpec, layers

NETWORKS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        EncoderSpec(
            "encoder_small",
            vocabulary=1000,
            length=64,
            width=128,
            heads=4,
            hidden=512,
            depth=4,
            num_classes=10,
            source="Vaswani et al. 2017; Xiong et al. 2020 (pre-norm)",
        ),
    )
}


def inputs(spec: EncoderSpec, batch: int, size: Shape) -> tuple[Input, ...]:
    return (Input((batch, *size), below=spec.vocabulary),)


def sizes(spec: EncoderSpec) -> tuple[Size, ...]:
    return (
        Size("num_classes", "classes", "head.weight", 0),
        Size("vocabulary", "tokens", "tokens.weight", 0),
        Size("length", "positions", "positions.weight", 0),
    )


TRANSFORMER_FAMILY = Family(
    name="transformer",
    title="Transformer encoder",
    description=EncoderSpec,
    network=lambda spec: "Encoder",
    networks=NETWORKS,
    layers=layers,
    size=lambda spec: (spec.length,),
    inputs=inputs,
    sizes=sizes,
)
