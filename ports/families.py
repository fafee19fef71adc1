"""Every family of networks, and the named networks of all: to add a family, add its folder and a line here."""

from __future__ import annotations

import difflib
from typing import Any

from ports.errors import UserError
from ports.family import Family, Input, Layer, Shape, joined
from ports.gpt2.family import GPT2_FAMILY
from ports.llama.family import LLAMA_FAMILY
from ports.objective import Objective
from ports.recurrent.family import RECURRENT_FAMILY
from ports.resnet.family import RESNET_FAMILY
from ports.segmentation.family import SEGMENTATION_FAMILY
from ports.transformer.family import TRANSFORMER_FAMILY
from ports.tutorial.family import TUTORIAL_FAMILY
from ports.vit.family import VIT_FAMILY

FAMILIES: tuple[Family, ...] = (
    RESNET_FAMILY,
    TUTORIAL_FAMILY,
    TRANSFORMER_FAMILY,
    VIT_FAMILY,
    GPT2_FAMILY,
    LLAMA_FAMILY,
    SEGMENTATION_FAMILY,
    RECURRENT_FAMILY,
)

NETWORKS: dict[str, Any] = {name: spec for family in FAMILIES for name, spec in family.networks.items()}
VARIANTS: dict[str, Any] = {name: spec for family in FAMILIES for name, spec in family.variants.items()}
KNOWN: dict[str, Any] = {**NETWORKS, **VARIANTS}
"""Every description that a checkpoint may be recognised as."""


def is_description(value: object) -> bool:
    """Return whether a value describes a network of some family."""
    return any(isinstance(value, family.description) for family in FAMILIES)


def family_of(spec: object) -> Family:
    """Return the family of a description.

    Raises:
        UserError: it describes no network.
    """
    for family in FAMILIES:
        if isinstance(spec, family.description):
            return family
    names = " or ".join(family.description.__name__ for family in FAMILIES)
    raise UserError(f"got {type(spec).__name__}, expected the name of a network or its description ({names})")


def get(name: Any, **changes: Any) -> Any:
    """Return the description of a named network (or the one given), with fields changed.

    `get("resnet50", num_classes=10)`; fields of a part may be given too: `get("resnet50", residual=False)`.

    Raises:
        UserError: no such network or field, or a value that the field cannot take.
    """
    if isinstance(name, str):
        if name not in NETWORKS:
            near = difflib.get_close_matches(name, NETWORKS, n=3, cutoff=0.5) or NETWORKS
            raise UserError(f"unknown network {name!r}; nearest: {', '.join(near)} (`parity models` lists all)")
        name = NETWORKS[name]
    return family_of(name).changed(name, changes)


def example_size(spec: Any) -> Shape:
    """Return the size that a network was made for: height and width of an image, or the length of a text."""
    return family_of(spec).size(spec)


def inputs_of(spec: Any, batch: int, size: Shape) -> tuple[Input, ...]:
    """Return what a network takes, in PyTorch's layout."""
    return family_of(spec).inputs(spec, batch, size)


def targets_of(spec: Any, batch: int, size: Shape) -> Input:
    """Return the targets of a network for a batch of examples of a size."""
    return objective_of(spec).targets(spec, batch, size)


def objective_of(spec: Any) -> Objective:
    """Return the objective of a network."""
    return family_of(spec).objective


def takes_images(spec: Any) -> bool:
    """Return whether a network takes images, so that photographs can be given."""
    return family_of(spec).takes_images


def takes_any_size(spec: Any) -> bool:
    """Return whether a network takes examples of other sizes than its own."""
    return family_of(spec).any_size


def size_step(spec: Any) -> int:
    """Return the number of pixels of which a network's image height and width must be multiples."""
    return family_of(spec).size_step(spec)


def reduced(spec: Any) -> Any:
    """Return the network that is checked in place of a large one: of the same kind and width, with few blocks."""
    return family_of(spec).reduced(spec)


def layers(spec: Any) -> list[Layer]:
    """Return all layers with tensors, in the order of PyTorch's state_dict."""
    return list(family_of(spec).layers(spec))


def second_names(spec: Any) -> dict[str, str]:
    """Return the second names of tensors that two layers share, with their first ones."""
    shared = [layer for layer in layers(spec) if layer.tied]
    return {joined(layer.torch, leaf): joined(layer.tied, leaf) for layer in shared for leaf in layer.shapes}
