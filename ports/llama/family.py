"""The named decoders of Llama's kind. No framework is imported."""

from __future__ import annotations

import dataclasses

from ports.family import Family, Input, Shape, Size
from ports.llama.config import READER
from ports.llama.spec import LlamaSpec, RopeScaling, layers
from ports.objective import NEXT_TOKEN

NETWORKS: dict[str, LlamaSpec] = {
    spec.name: spec
    for spec in (
        LlamaSpec(
            "llama-3.2-1b",
            vocabulary=128256,
            width=2048,
            heads=32,
            kv_heads=8,
            hidden=8192,
            depth=16,
            theta=500000.0,
            scaling=RopeScaling(),
            source="meta-llama/Llama-3.2-1B, config.json; transformers",
        ),
        LlamaSpec(
            "qwen2.5-0.5b",
            vocabulary=151936,
            width=896,
            heads=14,
            kv_heads=2,
            hidden=4864,
            depth=24,
            theta=1000000.0,
            epsilon=1e-6,
            bias=True,
            source="Qwen/Qwen2.5-0.5B, config.json; transformers",
        ),
        LlamaSpec(
            "smollm2-135m",
            vocabulary=49152,
            width=576,
            heads=9,
            kv_heads=3,
            hidden=1536,
            depth=30,
            theta=100000.0,
            source="HuggingFaceTB/SmolLM2-135M, config.json; transformers",
        ),
    )
}

EXAMPLE = 64  # tokens


def inputs(spec: LlamaSpec, batch: int, size: Shape) -> tuple[Input, ...]:
    return (Input((batch, *size), below=spec.vocabulary),)


def sizes(spec: LlamaSpec) -> tuple[Size, ...]:
    return (Size("vocabulary", "tokens", "model.embed_tokens.weight", 0),)


def reduced(spec: LlamaSpec) -> LlamaSpec:
    return dataclasses.replace(spec, depth=min(spec.depth, 2), vocabulary=min(spec.vocabulary, 4096))


LLAMA_FAMILY = Family(
    name="llama",
    title="Llama, Qwen 2.5 and SmolLM2",
    description=LlamaSpec,
    network=lambda spec: "LlamaForCausalLM",
    networks=NETWORKS,
    layers=layers,
    size=lambda spec: (EXAMPLE,),
    inputs=inputs,
    sizes=sizes,
    objective=NEXT_TOKEN,
    reduced=reduced,
    config=READER,
)
