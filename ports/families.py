"""Every family of networks, and the named networks of all: to add a family, add its folder and a line here.

`from_config` describes the network of a transformers' config.json, whether it has a name here or not.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import config as configs
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


@dataclass(frozen=True)
class Described:
    """What a config.json says of a network.

    Attributes:
        place: where the config was read, for messages.
        keys: those keys of it that were read: they describe the same network again.
        spec: the description; None if the ports do not compute this network.
        changes: the fields in which it differs from the named network of `spec.name`, with their values.
        problems: why there is no description, a line each.
    """

    place: str
    keys: Mapping[str, Any]
    spec: Any = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def difference(self, port: str, **more: Any) -> str:
        """Return in what the network differs from the named one, and the call that builds it; "" if in nothing.

        Args:
            more: fields of the description besides, such as `stacked=True`.
        """
        if not self.changes:
            return ""
        usual, family = NETWORKS[self.spec.name], family_of(self.spec)
        few = [f"{name} {_shown(value)}" for name, value in self.changes.items()]
        has = [f"has {_shown(family.value(usual, name))}" for name in self.changes]
        rows = [f"{own}, {usual.name} {other}" for own, other in zip(few, has, strict=True)]
        what = "; ".join(rows)
        if len(rows) > FEW or len(what) > LONG:
            what = "no network with a name has these sizes"
        return f"{self.place}: {what}; build it with {_creation(self.spec.name, port, {**self.changes, **more})}"


FEW, LONG = 3, 300  # differences that a person reads one by one, and their characters


def _creation(name: str, port: str, changes: Mapping[str, Any]) -> str:
    """Return the call that creates a network; it needs `import ports` and nothing else."""
    given = [f'"{name}"', f'"{port}"', *(f"{key}={_shown(value)}" for key, value in changes.items())]
    return f"ports.create({', '.join(given)})"


def _shown(value: object) -> str:
    """Return a field's value as Python has it, with the modules of records."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' * (len(value) == 1)})"
    return f"{type(value).__module__}.{value!r}" if dataclasses.is_dataclass(value) else repr(value)


def readers() -> dict[str, Family]:
    """Return the families that read a config.json, by its `model_type`."""
    return {kind: family for family in FAMILIES if family.config for kind in family.config.defaults}


def described(config: Mapping[str, Any], place: str = configs.NAME) -> Described | None:
    """Return what a config says of a network; None if its `model_type` is no family's."""
    kind = config.get(configs.TYPE)
    family = readers().get(kind) if isinstance(kind, str) else None
    if family is None or family.config is None:
        return None
    keys = configs.with_keys(family.config, config)
    fields = family.config.fields(keys)
    kept = {configs.TYPE: kind, **keys.given}
    if keys.problems:
        return Described(place, kept, problems=tuple(f"{place}: {problem}" for problem in keys.problems))
    specs = family.networks.values()
    options = [(spec, {n: v for n, v in fields.items() if family.value(spec, n) != v}) for spec in specs]
    nearest, changes = min(options, key=lambda option: len(option[1]))
    try:
        return Described(place, kept, family.changed(nearest, changes), changes)
    except UserError as error:
        return Described(place, kept, problems=(f"{place}: {str(error).removeprefix(f'{nearest.name}: ')}",))


def from_config(config: str | Path | Mapping[str, Any]) -> Any:
    """Return the description of the network that a transformers' config describes, for `ports.create`.

    Args:
        config: a config.json, a folder that holds one, or its content (`model.config.to_dict()`).

    Returns:
        The nearest named network with its fields changed: the `name` of the description is that network's.

    Raises:
        UserError: the config cannot be read, or the ports do not compute its network: a line for each key.
    """
    content = config if isinstance(config, Mapping) else configs.read(config)
    place = configs.NAME if isinstance(config, Mapping) else str(configs.file_of(config))
    found = described(content, place)
    if found is None:
        got = configs.shown(content.get(configs.TYPE))
        raise UserError(f"{place}: {configs.TYPE}: got {got}, expected one of {', '.join(readers())}")
    if found.problems:
        raise UserError("\n".join(found.problems))
    return found.spec
