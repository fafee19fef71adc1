"""Reads transformers' config.json of a ResNet as the fields of a `ResNetSpec`. No framework is imported.

Source: transformers' configuration_resnet.py and modeling_resnet.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ports.config import MOST_BLOCKS, Fixed, Keys, Reader
from ports.resnet.spec import BASIC, BOTTLENECK, Stage, Stem

DEFAULTS: dict[str, dict[str, Any]] = {
    "resnet": {
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "id2label": None,
        "num_labels": 2,
    }
}
BLOCKS = {"basic": BASIC, "bottleneck": BOTTLENECK}
FIXED = (
    Fixed("hidden_act", ("relu",), "the ports compute no other activation"),
    Fixed("layer_type", tuple(BLOCKS), "the ports have no other block"),
)
STAGES = 4  # the names of torchvision's layers end there


def fields(keys: Keys) -> dict[str, Any]:
    """Return the fields of a description."""
    block = BLOCKS.get(str(keys.value("layer_type")), BOTTLENECK)
    if keys.truth("downsample_in_bottleneck"):
        block = dataclasses.replace(block, stride_at=0)
    labels = keys.value("id2label")
    return {
        "stem": Stem(convs=((keys.count("embedding_size"), 7, 2),), max_pool=True),
        "stages": _stages(keys, block.expansion),
        **dataclasses.asdict(block),
        "in_channels": keys.count("num_channels"),
        "num_classes": len(labels) if isinstance(labels, dict) and labels else keys.count("num_labels"),
    }


def _stages(keys: Keys, expansion: int) -> tuple[Stage, ...]:
    widths, depths = keys.value("hidden_sizes"), keys.value("depths")
    if not _counts(widths) or not len(widths) <= STAGES or any(width % expansion for width in widths):
        keys.refuse("hidden_sizes", f"one to {STAGES} positive whole numbers that {expansion} divides")
    elif not _counts(depths) or len(depths) != len(widths) or sum(depths) > MOST_BLOCKS:
        keys.refuse("depths", f"{len(widths)} positive whole numbers, at most {MOST_BLOCKS} in all")
    if keys.problems:
        return (Stage(1, 1),)
    first = 2 if keys.truth("downsample_in_first_stage") else 1
    return tuple(
        Stage(width // expansion, depth, stride=2 if i else first)
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
    )


def _counts(values: object) -> bool:
    """Return whether a value is a sequence of positive whole numbers: a tuple in an object of transformers."""
    return isinstance(values, list | tuple) and bool(values) and all(type(n) is int and n > 0 for n in values)


READER = Reader(DEFAULTS, {"resnet": ("ResNetForImageClassification",)}, fields, FIXED)
