"""How other projects name the same layers: one row per dialect, from which the names of a whole network follow.

A dialect has a name for each role of a layer (`ports.family.Layer`); without such a name the layer keeps its PyTorch
name. `tensors` says how the tensors within a layer are called and laid out: `torch`, `flax` (kernel, scale, mean, …) or
`hwio` (PyTorch's names around kernels that are (height, width, in, out)).

Sources of the names: torchvision's and timm's resnet.py; Hugging Face transformers' modeling_resnet.py;
akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar; Flax's examples/imagenet/models.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from ports.families import is_description, layers
from ports.family import Layer, Shape, joined
from ports.frameworks import LAYOUTS
from ports.weights.form import lazy
from ports.weights.form.lazy import Array
from ports.weights.form.torch_form import Ignore, WeightsError, lossless
from ports.weights.layers.kinds import KINDS
from ports.weights.layers.leaves import LayerRule, Leaf

Path = tuple[str, ...]
TARGETS = tuple(LAYOUTS)


@dataclass(frozen=True)
class Dialect:
    """One row.

    Attributes:
        source: where its names were read.
        names: a template for each role that has a name of its own.
        number: the text before a position in a Sequential: `conv1.0`, `conv1.layers.0`, `conv1_0`.
        shared: where files keep a tensor that two layers share: under `both` names, of which one may be missing, under
            that of the layer that `made` it, or under the `first` name in the alphabet.
        key: the text before the key of a layer in a dict, or before a position in a list: `heads.head`, `heads_head`.
        tensors: how the tensors of a layer are called and laid out.
        nested: whether names are paths in a tree.
        stacked: whether a tensor of all blocks of a network is one array, whose first axis is the blocks.
        collections: whether Linen's `params` and `batch_stats` come first.
        networks: the networks that have these names; empty means all.
        ignore: other tensors in its files, and why they are left out; each pattern must match something, or it is
            another dialect.
        warning: in what the network differs although its weights fit.
    """

    name: str
    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    number: str = "."
    key: str = "."
    shared: Literal["both", "made", "first"] = "both"
    tensors: str = "torch"
    nested: bool = False
    stacked: bool = False
    collections: bool = False
    networks: tuple[str, ...] = ()
    ignore: tuple[Ignore, ...] = ()
    warning: str = ""

    def layer(self, layer: Layer) -> str:
        """Return its name of a layer."""
        name = self.names.get(layer.role)
        if name is not None:
            return name.format(**layer.fields)
        own, *parts = layer.torch.split(".")
        if self.stacked and layer.stack:
            parts.remove(layer.keys[0])
        so_far = own
        for part in parts:
            so_far += f".{part}"
            is_key = part in layer.keys or so_far in layer.keys
            own += (self.key if is_key else self.number if part.isdigit() else ".") + part
        return own


HUGGING_FACE = {
    "stem.conv": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "conv": "resnet.encoder.stages.{stage}.layers.{block}.layer.{i}.convolution",
    "bn": "resnet.encoder.stages.{stage}.layers.{block}.layer.{i}.normalization",
    "shortcut.conv": "resnet.encoder.stages.{stage}.layers.{block}.shortcut.convolution",
    "shortcut.bn": "resnet.encoder.stages.{stage}.layers.{block}.shortcut.normalization",
    "fc": "classifier.1",
}
CIFAR = {
    "shortcut.conv": "{at}.shortcut.0",
    "shortcut.bn": "{at}.shortcut.1",
    "fc": "linear",
}
FLAX_EXAMPLE = {
    "stem.conv": "conv_init",
    "bn1": "bn_init",
    "conv": "{kind}_{n}.Conv_{i}",
    "bn": "{kind}_{n}.BatchNorm_{i}",
    "shortcut.conv": "{kind}_{n}.conv_proj",
    "shortcut.bn": "{kind}_{n}.norm_proj",
    "fc": "Dense_0",
}
# GPT-2's published files are those of the base model, without the output layer.
GPT2_BASE = {
    "wte": "wte",
    "wpe": "wpe",
    **{role: "h.{block}." + role for role in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")},
    "ln_f": "ln_f",
}
GPT2_NETWORKS = ("gpt2", "gpt2-medium")
SAME_PADDING = (
    "Flax's example pads 'SAME': its convolutions and its pool of stride 2 see other pixels than PyTorch's, so the "
    "converted network does not compute what the example computes; build it with the example's padding, or fine-tune"
)

DIALECTS = {
    row.name: row
    for row in (
        Dialect("torchvision", "torchvision and timm, resnet.py; this package's PyTorch networks"),
        Dialect("nnx", "this package's NNX networks", number=".layers.", shared="first", tensors="flax", nested=True),
        Dialect(
            "linen",
            "this package's Linen networks",
            number="_",
            key="_",
            shared="made",
            tensors="flax",
            nested=True,
            collections=True,
        ),
        Dialect("transformers", "Hugging Face transformers, modeling_resnet.py", HUGGING_FACE),
        Dialect("cifar", "akamaster/pytorch_resnet_cifar10, resnet.py; kuangliu/pytorch-cifar, resnet.py", CIFAR),
        Dialect(
            "flax-imagenet",
            "flax, examples/imagenet/models.py",
            FLAX_EXAMPLE,
            tensors="flax",
            nested=True,
            collections=True,
            warning=SAME_PADDING,
        ),
        Dialect(
            "tutorial",
            "a second tutorial on residual networks, as published",
            networks=("tutorial_resnet",),
            ignore=(Ignore("*.shortcut.*", why="built, never called"),),
        ),
        Dialect("gpt2-base", "transformers, modeling_gpt2.py, GPT2Model", GPT2_BASE, networks=GPT2_NETWORKS),
        Dialect(
            "gpt2-published",
            "openai-community/gpt2, model.safetensors",
            GPT2_BASE,
            networks=GPT2_NETWORKS,
            ignore=(Ignore("h.*.attn.bias", why="the causal mask, which no layer learns"),),
        ),
        Dialect("torchvision-hwio", "torchvision's names around Flax's layouts", tensors="hwio"),
        Dialect("cifar-hwio", "the CIFAR networks' names around Flax's layouts", CIFAR, tensors="hwio"),
    )
}
DIALECTS |= {
    name: replace(DIALECTS[of], name=name, source=f"{DIALECTS[of].source} with stacked blocks", stacked=True)
    for of, name in (("nnx", "nnx-stacked"), ("linen", "linen-stacked"))
}
TARGET = {"torch": DIALECTS["torchvision"], "nnx": DIALECTS["nnx"], "linen": DIALECTS["linen"]}
STACKED = {"nnx": DIALECTS["nnx-stacked"], "linen": DIALECTS["linen-stacked"]}


@dataclass(frozen=True)
class InStack:
    """One block's part of an array of all blocks.

    Attributes:
        number: of the block.
        length: how many there are.
        leaf: how to convert the tensor to the block's arrays, and back.
    """

    number: int
    length: int
    leaf: Leaf

    def whole(self) -> Leaf:
        """Return how to convert the tensor to arrays of all blocks, and back."""
        leaf = self.leaf
        return replace(
            leaf,
            to_flax=lambda array: tuple(np.broadcast_to(a, (self.length, *a.shape)) for a in leaf.to_flax(array)),
            to_torch=lambda arrays: leaf.to_torch(tuple(a[self.number] for a in arrays)),
        )


@dataclass(frozen=True)
class DialectEntry:
    """One tensor of the torch form and where a file keeps it.

    Attributes:
        leaf: how to convert it to the file's arrays, and back.
        paths: of those arrays.
        parameter: whether it is trained; statistics are not, and of a tensor with two names only the first counts.
        tied: the first name of a tensor that has two.
        stack: its part of the arrays, if they belong to all blocks.
    """

    torch: str
    shape: Shape
    leaf: Leaf
    paths: tuple[Path, ...]
    parameter: bool
    tied: str = ""
    stack: InStack | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(".".join(path) for path in self.paths)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the file's arrays."""
        return tuple(a.shape for a in self.leaf.to_flax(np.broadcast_to(np.int8(0), self.shape)))

    def from_torch(self, array: Array) -> list[Array]:
        """Return the file's arrays: views where possible."""
        if self.leaf.dtype is None or not self.leaf.flax:
            return lazy.mapped(lambda arrays: self.leaf.to_flax(arrays[0]), (array,))
        made = self.leaf.to_flax(np.asarray(array))
        cast = [lossless(a, np.dtype("int32")) for a in made]
        if any(a is None for a in cast):
            raise WeightsError(f"{self.torch}: got {np.asarray(array)}, which does not fit Flax's int32")
        return [a for a in cast if a is not None]

    def to_torch(self, arrays: tuple[Array, ...]) -> Array:
        """Return the tensor in the torch form: a view where possible."""
        if self.leaf.dtype is None:
            return lazy.mapped(lambda arrays: (self.leaf.to_torch(arrays),), arrays)[0]
        return self.leaf.to_torch(tuple(np.asarray(array) for array in arrays)).astype(self.leaf.dtype)


def mapping(spec: Any, dialect: Dialect) -> list[DialectEntry]:
    """Return where a file of this dialect keeps every tensor of a described network, or of some `Layer`s."""
    rows: Iterable[Layer] = layers(spec) if is_description(spec) else spec
    found = [entry for layer in rows for entry in entries(layer, dialect)]
    return found if dialect.shared == "both" else _shared(found, dialect.shared)


def parameters(spec: Any) -> int:
    """Return how many numbers of a described network are trained. No framework is imported."""
    return sum(math.prod(entry.shape) for entry in mapping(spec, TARGET["torch"]) if entry.parameter)


def _shared(rows: Sequence[DialectEntry], where: str) -> list[DialectEntry]:
    """Give both names of a shared tensor the path under which a framework keeps it."""
    made = {entry.torch: entry.paths for entry in rows}
    for entry in rows:
        if entry.tied and where == "first":
            made[entry.tied] = min(made[entry.tied], entry.paths)
    return [replace(entry, paths=made[entry.tied or entry.torch]) for entry in rows]


def entries(layer: Layer, dialect: Dialect) -> list[DialectEntry]:
    """The tensors of one layer."""
    base, found = dialect.layer(layer), {}
    for leaf, kept, names in kept_leaves(KINDS[layer.type].leaves, dialect.tensors, layer.options):
        if leaf.torch not in layer.shapes:
            continue
        paths = []
        for name in names:
            path = tuple(joined(base, name).split(".")) if dialect.nested else (joined(base, name),)
            paths.append((leaf.collection, *path) if dialect.collections else path)
        torch_name, shape = joined(layer.torch, leaf.torch), layer.shapes[leaf.torch]
        tied = joined(layer.tied, leaf.torch) if layer.tied else ""
        trained = leaf.collection == "params" and not tied
        stack = InStack(int(layer.keys[0]), layer.stack, kept) if dialect.stacked and layer.stack else None
        whole = stack.whole() if stack else kept
        found[leaf.torch] = DialectEntry(torch_name, shape, whole, tuple(paths), trained, tied, stack)
    return [found[name] for name in layer.shapes if name in found]


@functools.cache
def kept_leaves(rule: LayerRule, tensors: str, options: tuple[tuple[str, Any], ...]) -> list[tuple[Leaf, Leaf, Path]]:
    """For each tensor of a layer: its leaf, its layout in a dialect, and its name there."""
    rows = []
    for leaf in rule(SimpleNamespace(**dict(options))):
        if tensors == "flax":
            rows.append((leaf, leaf, leaf.flax))
        else:
            kept = (
                Leaf(leaf.torch, (), leaf.to_flax, leaf.to_torch)
                if tensors == "hwio" and len(leaf.flax) == 1
                else Leaf(leaf.torch, ())
            )
            rows.append((leaf, kept, (leaf.torch,)))
    return rows
