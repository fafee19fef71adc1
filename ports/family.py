"""The record of a family of networks, `Family`, and `Layer`, a layer with tensors under its PyTorch name.

A family is a folder in `ports`: `spec.py` describes its networks as data, and `pytorch.py`, `nnx.py` and `linen.py`
build them. `ports.families` lists all families. No framework is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ports.config import Reader
from ports.errors import UserError
from ports.objective import CLASSIFICATION, Input, Objective, Shape

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Layer:
    """One layer with tensors.

    Attributes:
        role: its role in the network, by the name that dialects use: `stem.conv`, `conv`, `shortcut.bn`, `fc`, …
        torch: its PyTorch name.
        type: name of its row in `ports.weights.layers.kinds`: `conv`, `batch_norm`.
        shapes: of its tensors in the torch form.
        fields: what a dialect's template may use: `at` (the block's PyTorch name), `stage` and `block` (from 0), `n`
            (blocks through the network, from 0), `i` (layers of this role in the block, from 0), `kind` (of block, as
            Flax's example calls it).
        ends_branch: whether its output is added to a shortcut.
        options: settings of the layer that its rule reads, such as `(("num_heads", 4),)`.
        keys: the parts of its name that are keys of a dict of layers, or positions in a list that is no Sequential;
            where a Sequential in its name has the same position, the name from its beginning up to that part.
        tied: the name of the layer whose tensors it shares.
        stack: how many blocks have such a layer, if a port may keep them in one array; the first of `keys` is the
            number of its block. Otherwise 0.
    """

    role: str
    torch: str
    type: str
    shapes: dict[str, Shape]
    fields: dict[str, Any] = field(default_factory=dict)
    ends_branch: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    tied: str = ""
    stack: int = 0

    @property
    def tensors(self) -> dict[str, Shape]:
        """The shapes of its tensors under their whole PyTorch names."""
        return {joined(self.torch, name): shape for name, shape in self.shapes.items()}


def joined(*parts: str) -> str:
    """Return the name of a tensor within modules; the network itself, and a tensor without a layer, add no part."""
    return ".".join(part for part in parts if part)


@runtime_checkable
class Convolution(Protocol):
    """The attributes of a convolution's description that `conv_layer` reads."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def kernel_size(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def bias(self) -> bool: ...


def conv_layer(role: str, name: str, conv: Convolution, **fields: Any) -> Layer:
    window = (conv.kernel_size, conv.kernel_size)
    shapes: dict[str, Shape] = {"weight": (conv.out_channels, conv.in_channels // conv.groups, *window)}
    return Layer(role, name, "conv", shapes | ({"bias": (conv.out_channels,)} if conv.bias else {}), fields)


def batch_norm_layer(role: str, name: str, channels: int, *, ends_branch: bool = False, **fields: Any) -> Layer:
    names = ("weight", "bias", "running_mean", "running_var")
    return Layer(role, name, "batch_norm", {**dict.fromkeys(names, (channels,)), COUNTER: ()}, fields, ends_branch)


def linear_layer(
    role: str, name: str, in_features: int, out_features: int, *, keys: tuple[str, ...] = (), **fields: Any
) -> Layer:
    shapes: dict[str, Shape] = {"weight": (out_features, in_features), "bias": (out_features,)}
    return Layer(role, name, "linear", shapes, fields, keys=keys)


@runtime_checkable
class Description(Protocol):
    """The common attributes of all network descriptions, which are frozen dataclasses."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def number_of_blocks(self) -> int: ...


def image_inputs(spec: Any, batch: int, size: Shape) -> tuple[Input, ...]:
    """The input of a network that takes a batch of images."""
    return (Input((batch, spec.in_channels, *size)),)


def image_sizes(layers: Iterable[Layer]) -> tuple[Size, ...]:
    """In what a checkpoint of an image classifier may differ: classes, and channels of the first convolution."""
    first = next(iter(layers)).torch
    return (Size("num_classes", "classes", "fc.weight", 0), Size("in_channels", "input channels", f"{first}.weight", 1))


def image_size(spec: Any) -> Shape:
    return spec.input_size, spec.input_size


@dataclass(frozen=True)
class Size:
    """An option of a network in which a checkpoint may differ, and the shape that shows it.

    Attributes:
        option: the field of the description.
        text: what it counts, as in "7 classes".
        tensor: the PyTorch name of a tensor that shows it, and `axis` of that tensor in PyTorch's layout.
        value: gives the option from the length of that axis.
    """

    option: str
    text: str
    tensor: str
    axis: int
    value: Callable[[int], int] = lambda length: length


@dataclass(frozen=True)
class Family:
    """One family of networks.

    Attributes:
        name: of its folder in `ports`.
        title: its name in the documentation.
        description: the class of its descriptions, which have the attributes of `Description`.
        network: gives the name of the class that builds a description, the same in each port's file.
        networks: the named networks.
        size: gives the size of an example: height and width of an image, or the length of a text.
        inputs: gives the inputs of a batch of examples of a size.
        takes_images: whether the input is images (batch, channels, height, width), so that photographs can be used.
        any_size: whether the networks take examples of other sizes than `size`.
        size_step: gives the number of pixels of which an image's height and width must be multiples.
        layers: gives the layers with tensors of a description, in the order of PyTorch's state_dict.
        variants: networks whose checkpoints are in use, but which have no named port.
        parts: fields of a description that are descriptions themselves, whose fields may be changed by their names.
        sizes: gives the options in which a checkpoint may differ from a description.
        headless: gives the description without its classifier; None if there is no such network.
        objective: the training objective of the networks.
        reduced: gives a network of the same kind and width with few blocks, and just enough classes to show a mistake;
            `parity check --all` checks it in place of a large one. By default the network itself.
        config: reads transformers' config.json as the fields of a description; None if its networks are others.
    """

    name: str
    title: str
    description: type
    network: Callable[[Any], str]
    networks: dict[str, Any]
    layers: Callable[[Any], Iterable[Layer]]
    size: Callable[[Any], Shape]
    inputs: Callable[[Any, int, Shape], tuple[Input, ...]]
    takes_images: bool = False
    any_size: bool = True
    size_step: Callable[[Any], int] = lambda spec: 1
    variants: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    sizes: Callable[[Any], tuple[Size, ...]] = lambda spec: ()
    headless: Callable[[Any], Any] = lambda spec: None
    objective: Objective = CLASSIFICATION
    reduced: Callable[[Any], Any] = lambda spec: spec
    config: Reader | None = None

    def has_option(self, name: str) -> bool:
        """Return whether descriptions, or one of their parts, have a field of this name."""
        some = next(iter(self.networks.values()))
        owners = [some, *(getattr(some, part) for part in self.parts)]
        return any(f.name == name for owner in owners for f in dataclasses.fields(owner))

    def value(self, spec: Any, name: str) -> Any:
        """Return a field of a description, or of one of its `parts`."""
        owners = [spec, *(getattr(spec, part) for part in self.parts)]
        return next(getattr(owner, name) for owner in owners if hasattr(owner, name))

    def changed(self, spec: Any, changes: Mapping[str, Any]) -> Any:
        """Return a description with new values of its fields, or of the fields of its `parts`.

        Raises:
            UserError: no such field, or a value that it cannot take.
        """
        options = {f.name for f in dataclasses.fields(spec)}
        inner = {part: {f.name for f in dataclasses.fields(getattr(spec, part))} for part in self.parts}
        known = options.union(*inner.values())
        if unknown := sorted(set(changes) - known):
            raise UserError(f"{spec.name}: no option {', '.join(unknown)}; expected one of {', '.join(sorted(known))}")
        own = {name: value for name, value in changes.items() if name in options}
        for part, names in inner.items():
            if given := {name: value for name, value in changes.items() if name in names}:
                own[part] = dataclasses.replace(own.get(part, getattr(spec, part)), **given)
        return dataclasses.replace(spec, **own)
