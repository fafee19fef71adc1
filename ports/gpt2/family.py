"""The named networks of GPT-2. No framework is imported."""

from __future__ import annotations

import dataclasses

from ports.family import Family, Input, Shape, Size
from ports.gpt2.config import READER
from ports.gpt2.spec import GPT2Spec, layers
from ports.objective import NEXT_TOKEN

SOURCE = "Radford et al. 2019, table 2; transformers"

NETWORKS: dict[str, GPT2Spec] = {
    spec.name: spec
    for spec in (
        GPT2Spec("gpt2", width=768, heads=12, depth=12, source=SOURCE),
        GPT2Spec("gpt2-medium", width=1024, heads=16, depth=24, source=SOURCE),
    )
}

EXAMPLE = 64  # tokens: a text need not be as long as the longest


def inputs(spec: GPT2Spec, batch: int, size: Shape) -> tuple[Input, ...]:
    return (Input((batch, *size), below=spec.vocabulary),)


def sizes(spec: GPT2Spec) -> tuple[Size, ...]:
    return (
        Size("vocabulary", "tokens", "transformer.wte.weight", 0),
        Size("length", "positions", "transformer.wpe.weight", 0),
    )


def reduced(spec: GPT2Spec) -> GPT2Spec:
    return dataclasses.replace(spec, depth=min(spec.depth, 2), vocabulary=min(spec.vocabulary, 4096))


GPT2_FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    description=GPT2Spec,
    network=lambda spec: "GPT2LMHeadModel",
    networks=NETWORKS,
    layers=layers,
    size=lambda spec: (min(spec.length, EXAMPLE),),
    inputs=inputs,
    sizes=sizes,
    objective=NEXT_TOKEN,
    reduced=reduced,
    config=READER,
)
