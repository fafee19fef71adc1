"""The records of a pairing: which layer or tensor of the port is which of the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from parity.running.model_layers import ModelLayer
from ports.weights.form.rearrangement import Rearrangement

NAMES, VALUES = "equal names", "equal values"
NUMBERED, ORDER, ONLY = "equal names but for numbers", "the order of calls", "the only ones of these shapes"
GIVEN, PREFIXED, SIMILAR = "given", "equal names behind a prefix", "similar names"
COMPUTED = "values or computing"
TIED = "shares its tensor with a paired layer"


@dataclass(frozen=True)
class Pair:
    """Two layers that are one.

    Attributes:
        why: what the pairing rests on.
    """

    torch: ModelLayer
    flax: ModelLayer
    why: str

    def __str__(self) -> str:
        return f"{self.torch.name} = {self.flax.name}  ({self.why})"


@dataclass(frozen=True)
class Holding:
    """One way in which the port may hold tensors of PyTorch's.

    Attributes:
        held: the port's names of the tensors that hold the numbers.
        form: how they hold them.
        rank: how unlikely it is: 0 for the likeliest.
        spelled: whether names say which of several parts is which, or there is one part.
    """

    held: tuple[str, ...]
    form: Rearrangement
    rank: int = 0
    spelled: bool = True


@dataclass(frozen=True)
class View:
    """Variables of the port that hold the numbers of PyTorch's tensors in another form.

    Attributes:
        count: of PyTorch's tensors.
        ways: in which the port may hold them, the likeliest first.
        chosen: which of them is right.
    """

    count: int
    ways: tuple[Holding, ...]
    chosen: int = 0

    @property
    def held(self) -> tuple[str, ...]:
        """The port's names of the tensors that hold the numbers."""
        return self.ways[self.chosen].held

    @property
    def form(self) -> Rearrangement:
        """The rearrangement that is right."""
        return self.ways[self.chosen].form

    @property
    def names(self) -> tuple[str, ...]:
        """What the check calls the tensors, in PyTorch's form, as the port's."""
        return tuple(f"{'+'.join(self.held)}|{i}" for i in range(self.count))

    @property
    def layers(self) -> tuple[str, ...]:
        """What the check calls the layers that these tensors are."""
        label = "+".join(self.held)
        return tuple(f"{label}[{i}]" for i in range(self.count)) if self.count > 1 else (label,)

    def choosing(self, chosen: int) -> View:
        """Return the view with another way."""
        return replace(self, chosen=chosen)

    def read(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors in PyTorch's form from the port's."""
        arrays = tuple(np.asarray(values[name]) for name in self.held)
        return dict(zip(self.names, self.form.to_torch(arrays), strict=True))

    def written(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the port's tensors from those in PyTorch's form."""
        arrays = tuple(np.asarray(values[name]) for name in self.names)
        return dict(zip(self.held, self.form.to_flax(arrays), strict=True))


@dataclass(frozen=True)
class Choice:
    """Views that one decision settles: the same tensors in all layers of a kind.

    Attributes:
        views: by their places in the pairing, those of each layer together.
        ways: for each way the index of the `Holding` of each of these views, the likeliest way first.
        spelled: those of them in whose order of parts the names of fused tensors have them.
        equal: those of them under which the port's values are PyTorch's, where values alone do not decide.
    """

    views: tuple[tuple[int, ...], ...]
    ways: tuple[tuple[int, ...], ...]
    spelled: frozenset[tuple[int, ...]] = frozenset()
    equal: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Unpaired:
    """A layer or tensor that needs no counterpart.

    Attributes:
        why: the reason.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(frozen=True)
class Pairing:
    """All pairs in PyTorch's order, and what needs none.

    Attributes:
        unused: PyTorch's layers without a counterpart.
        spare: the port's.
        views: the port's tensors in PyTorch's form, where they are held in another.
        choices: which views have several forms that fit.
    """

    pairs: tuple[Pair, ...]
    unused: tuple[Unpaired, ...] = ()
    spare: tuple[Unpaired, ...] = ()
    views: tuple[View, ...] = ()
    choices: tuple[Choice, ...] = field(default=(), compare=False)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return PyTorch's name, the port's, the form and what it rests on, a row for each pair."""
        forms = {name: str(view.form) for view in self.views for name in view.names}
        found = []
        for p in self.pairs:
            own = dict.fromkeys(forms[name] for name in p.flax.tensors.values() if name in forms)
            found.append((p.torch.name, p.flax.name, "; ".join(one for one in own if one != "same"), p.why))
        return found

    def __str__(self) -> str:
        lines = [f"{a} = {b}  ({why}{': ' + form if form else ''})" for a, b, form, why in self.rows()]
        return "\n".join([*lines, *map(str, (*self.unused, *self.spare))])

    def choosing(self, choice: Choice, way: Sequence[int]) -> Pairing:
        """Return the pairing with one choice made; `reading` gives its values."""
        views = list(self.views)
        renamed: dict[str, tuple[View, int]] = {}
        for several in choice.views:
            for i, chosen in zip(several, way, strict=True):
                old, views[i] = views[i], views[i].choosing(chosen)
                if old.held != views[i].held:
                    renamed |= {name: (views[i], n) for n, name in enumerate(old.names)}
        pairs = tuple(replace(p, flax=_held_by(p.flax, renamed)) for p in self.pairs) if renamed else self.pairs
        return replace(self, pairs=pairs, views=tuple(views))

    def open(self, choices: Sequence[Choice]) -> Pairing:
        """Return the pairing with these choices left."""
        return replace(self, choices=tuple(choices))

    def reading(self, values: Mapping[str, np.ndarray]) -> Pairing:
        """Return the pairing with the port's values of all views read again.

        Args:
            values: the port's tensors by their own names.
        """
        seen: dict[str, np.ndarray] = {}
        for view in self.views:
            seen |= view.read(values)
        pairs = [replace(p, flax=_with_values(p.flax, seen)) for p in self.pairs]
        return replace(self, pairs=tuple(pairs))


def _held_by(layer: ModelLayer, renamed: Mapping[str, tuple[View, int]]) -> ModelLayer:
    """Return a layer of the port under the name of the variable that holds it now."""
    known = [renamed[name] for name in layer.tensors.values() if name in renamed]
    if not known:
        return layer
    view, i = known[0]
    leaf = view.held[0].removeprefix(f"{layer.owner}.") if layer.owner else view.held[0]
    return replace(layer, name=view.layers[i], tensors={"value": view.names[i]}, leaf=leaf)


def _with_values(layer: ModelLayer, seen: Mapping[str, np.ndarray]) -> ModelLayer:
    if not any(name in seen for name in layer.tensors.values()):
        return layer
    return replace(layer, values={leaf: seen.get(name, layer.values[leaf]) for leaf, name in layer.tensors.items()})


def expanded(views: Sequence[View], own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what is written into the port: the tensors of views in the form that the port holds."""
    inside = {name for view in views for name in view.names}
    new = {name: array for name, array in own.items() if name not in inside}
    for view in views:
        if all(name in own for name in view.names):
            new |= view.written(own)
    return new
