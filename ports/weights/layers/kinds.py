"""One table of layer types: a row says which classes a type has in each framework, and which tensor is which.

Live models, files of known networks, rules files, their drafts and the pairing of `parity` all read it. `register` adds
a row. A row matches a class itself or its qualified name, along the base classes of a layer: a class of your own with
the name `Linear` does not get Flax's row. No framework is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

from ports.errors import UserError
from ports.weights.layers import leaves
from ports.weights.layers.leaves import LayerRule, Leaf

LayerType = type | str


@dataclass(frozen=True)
class Option:
    """A setting of a layer that its rule reads, for files without a live layer.

    Attributes:
        name: its name in a rules file.
        setting: the attribute of the Flax layer.
        default: None if a rules file must give it, as a number.
        tensor, axis: the Flax tensor whose shape shows the setting.
    """

    name: str
    setting: str
    default: bool | int | None = None
    tensor: str = ""
    axis: int = 0


@dataclass(frozen=True)
class LayerKind:
    """One row.

    Attributes:
        name: its name in rules files and descriptions of networks.
        torch_types, flax_types: its classes, or their qualified names by any path; subclasses have the same row.
        leaves: gives the tensors of a layer from its settings.
        group: the rows of one group may be ports of each other: a GroupNorm of one group is a LayerNorm. `parity` pairs
            by it; by default the row is a group of its own.
        options: the settings that `leaves` reads; None if only a live layer has them.
        needs: PyTorch's names of the tensors that every such layer has.
        ranks: how many dimensions the first of them may have in PyTorch; empty if a draft never takes this row.
        composed: whether Flax's class is made of layers that have rows themselves.
    """

    name: str
    torch_types: tuple[LayerType, ...]
    flax_types: tuple[LayerType, ...]
    leaves: LayerRule
    group: str = ""
    options: tuple[Option, ...] | None = ()
    needs: tuple[str, ...] = ("weight",)
    ranks: tuple[int, ...] = ()
    composed: bool = False

    @property
    def pairs_as(self) -> str:
        """The group that `parity` pairs by."""
        return self.group or self.name

    def leaves_for(self, given: Mapping[str, object]) -> tuple[Leaf, ...]:
        """Return the tensors of a layer with these options, without a live layer."""
        options = {option.setting: given.get(option.name, option.default) for option in self.options or ()}
        return self.leaves(SimpleNamespace(**options))


def _classes(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names.split())


def _torch(names: str) -> tuple[str, ...]:
    return _classes("torch.nn", names)


def _flax(nnx: str, linen: str) -> tuple[str, ...]:
    return _classes("flax.nnx", nnx) + _classes("flax.linen", linen)


def _ours(name: str) -> tuple[str, ...]:
    """The Flax classes of a layer of this package."""
    return f"ports.layers.nnx.{name}", f"ports.layers.linen.{name}"


HEADS = Option("heads", "num_heads", tensor="query.kernel", axis=1)
TRANSPOSE = Option("transpose_kernel", "transpose_kernel", default=False)

# If the tensors of a file fit several rows, a draft takes the first.
KINDS: dict[str, LayerKind] = {
    row.name: row
    for row in (
        LayerKind("conv", _torch("Conv1d Conv2d Conv3d"), _flax("Conv", "Conv"), leaves.conv, ranks=(3, 4, 5)),
        LayerKind(
            "conv_transpose",
            _torch("ConvTranspose1d ConvTranspose2d ConvTranspose3d"),
            _flax("ConvTranspose", "ConvTranspose"),
            leaves.conv_transpose,
            options=(TRANSPOSE,),
            ranks=(3, 4, 5),
        ),
        LayerKind("linear", _torch("Linear"), _flax("Linear", "Dense"), leaves.linear, ranks=(2,)),
        LayerKind(
            "conv1d",
            ("ports.layers.pytorch.Conv1D",),
            _ours("Conv1D"),
            leaves.linear_alike,
        ),
        LayerKind(
            "linear_general",
            (),
            _flax("LinearGeneral", "DenseGeneral"),
            leaves.linear_general,
            group="linear",
            options=None,
        ),
        LayerKind(
            "batch_norm",
            _torch("modules.batchnorm._BatchNorm"),
            _flax("BatchNorm", "BatchNorm"),
            leaves.batch_norm,
            needs=("running_mean",),
            ranks=(1,),
        ),
        *(
            LayerKind(name, _torch(torch), _flax(flax, flax), leaves.affine, group="affine", ranks=(1,))
            for name, torch, flax in (
                ("layer_norm", "LayerNorm", "LayerNorm"),
                ("group_norm", "GroupNorm", "GroupNorm"),
                ("instance_norm", "modules.instancenorm._InstanceNorm", "InstanceNorm"),
                ("rms_norm", "RMSNorm", "RMSNorm"),
            )
        ),
        LayerKind("embedding", _torch("Embedding"), _flax("Embed", "Embed"), leaves.embedding, ranks=(2,)),
        LayerKind(
            "attention",
            _torch("MultiheadAttention"),
            _flax("MultiHeadAttention", "MultiHeadDotProductAttention"),
            leaves.attention,
            options=(HEADS,),
            needs=("in_proj_weight", "out_proj.weight"),
            ranks=(2,),
            composed=True,
        ),
        LayerKind(
            "lstm",
            _torch("LSTM LSTMCell"),
            _flax("LSTMCell OptimizedLSTMCell", "LSTMCell OptimizedLSTMCell"),
            leaves.lstm,
            options=None,
        ),
        LayerKind("gru", _torch("GRU GRUCell"), _flax("GRUCell", "GRUCell"), leaves.gru, options=None),
        *(
            row
            for name, kind in (("lstm", "LSTM"), ("gru", "GRU"))
            for row in (
                LayerKind(f"{name}_two_biases", (), _ours(f"{kind}Cell"), leaves.two_biases, group=name),
                LayerKind(
                    f"{name}_layer", (), _ours(kind), leaves.recurrent_layer, needs=("weight_ih_l0",), composed=True
                ),
            )
        ),
        LayerKind("tensor", (), (), leaves.tensor, needs=("",)),
    )
}
REGISTERED: list[LayerKind] = []  # the rows that users add; a later one wins
APART: ContextVar[tuple[LayerKind, ...]] = ContextVar("APART", default=())  # the rows that no layer has now


def register(
    layer_type: LayerType | Sequence[LayerType],
    rule: LayerRule,
    *,
    torch: LayerType | Sequence[LayerType] = (),
    name: str = "",
) -> None:
    """Add a row for a layer class: a library's, or your own.

    Args:
        layer_type: the Flax class or classes, or their qualified names, such as "mypackage.layers.Scaled".
        rule: gives the leaves of a layer.
        torch: the PyTorch class or classes that it is a port of. Without them `parity` pairs the tensors one by one.
        name: of the row; an existing row of this name pairs with the same layers.

    Raises:
        UserError: a name without a module: another package may have a class of that name.
    """
    flax_types, torch_types = _several(layer_type), _several(torch)
    if not flax_types:
        raise UserError("register: got no layer class")
    if bare := [one for one in (*flax_types, *torch_types) if isinstance(one, str) and "." not in one]:
        raise UserError(
            f"register: got the bare name {bare[0]!r}, expected the class itself or its qualified name, "
            f"such as 'mypackage.layers.{bare[0]}'"
        )
    like = KINDS.get(name) if name else next((row for row in KINDS.values() if rule is row.leaves), None)
    name = name or (like.name if like else _qualified(flax_types[0]))
    REGISTERED.append(LayerKind(name, torch_types, flax_types, rule, like.group if like else "", options=None))


def kind_of(layer: object) -> LayerKind | None:
    """Return the row of the most derived class of a live layer that has one, in PyTorch or in Flax."""
    rows = _by_class()
    found = (rows.get(cls) or rows.get(_qualified(cls)) for cls in type(layer).__mro__)
    return next((row for row in found if row is not None and row not in APART.get()), None)


@contextmanager
def composed_apart(torch_layers: Iterable[object]) -> Iterator[None]:
    """Treat Flax's composed layers as their parts, if the PyTorch model has no such layer as a whole.

    Args:
        torch_layers: all layers of the PyTorch model.
    """
    whole = {row.name for layer in torch_layers if (row := kind_of(layer)) is not None}
    token = APART.set(tuple(row for row in KINDS.values() if row.composed and row.name not in whole))
    try:
        yield
    finally:
        APART.reset(token)


def has_counterpart(kind: LayerKind) -> bool:
    """Return whether the table knows PyTorch's classes of a row, so that whole layers can be paired."""
    return any(row.torch_types for row in (*KINDS.values(), *REGISTERED) if row.pairs_as == kind.pairs_as)


def _several(types: LayerType | Sequence[LayerType]) -> tuple[LayerType, ...]:
    return (types,) if isinstance(types, type | str) else tuple(types)


def _qualified(cls: LayerType) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


_cache: tuple[object, dict[LayerType, LayerKind]] = (None, {})


def _by_class() -> dict[LayerType, LayerKind]:
    """Return the rows by their class names, and by the classes that these names mean now."""
    global _cache
    rows = (*KINDS.values(), *REGISTERED)
    state = (len(sys.modules), *map(id, rows))  # a new module may hold the class of a qualified name
    if _cache[0] != state:
        found: dict[LayerType, LayerKind] = {}
        for row in rows:
            for one in (*row.torch_types, *row.flax_types):
                found[one] = row
                if isinstance(one, str) and (cls := _loaded(one)) is not None:
                    found[cls] = row
        _cache = state, found
    return _cache[1]


def _loaded(name: str) -> type | None:
    """Return the class that a qualified name means, by any path to it; None if its module is not loaded."""
    module, _, inner = name.rpartition(".")
    while module and module not in sys.modules:
        module, _, last = module.rpartition(".")
        inner = f"{last}.{inner}"
    found: object = sys.modules.get(module)
    for part in inner.split("."):
        # `getattr` could import something: some libraries load a class on access.
        found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
    return found if isinstance(found, type) else None
