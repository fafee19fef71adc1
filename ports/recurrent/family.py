"""The named recurrent networks. No framework is imported."""

from __future__ import annotations

from ports.family import Family, Input, Shape, Size
from ports.recurrent.spec import RecurrentSpec, layers

SOURCE = "Wu et al. 2016, section 3.2 and figure 2"

NETWORKS: dict[str, RecurrentSpec] = {
    spec.name: spec
    for spec in (
        RecurrentSpec("residual_lstm", cell="lstm", vocabulary=1000, width=128, depth=5, num_classes=10, source=SOURCE),
        RecurrentSpec(
            "residual_gru",
            cell="gru",
            vocabulary=1000,
            width=128,
            depth=5,
            num_classes=10,
            source=f"{SOURCE}, with the units of Cho et al. 2014",
        ),
    )
}

EXAMPLE = 32  # tokens


def inputs(spec: RecurrentSpec, batch: int, size: Shape) -> tuple[Input, ...]:
    return (Input((batch, *size), below=spec.vocabulary, padded=True),)


def sizes(spec: RecurrentSpec) -> tuple[Size, ...]:
    return (
        Size("num_classes", "classes", "head.weight", 0),
        Size("vocabulary", "tokens", "tokens.weight", 0),
        Size("width", "features", "tokens.weight", 1),
    )


RECURRENT_FAMILY = Family(
    name="recurrent",
    title="Residual recurrent networks",
    description=RecurrentSpec,
    network=lambda spec: "ResidualRNN",
    networks=NETWORKS,
    layers=layers,
    size=lambda spec: (EXAMPLE,),
    inputs=inputs,
    sizes=sizes,
)
