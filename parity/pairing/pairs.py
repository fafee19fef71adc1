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
class View:
    """Variables of the port that hold the numbers of PyTorch's tensors in another form.

    Attributes:
        names: what the check calls the tensors, in PyTorch's form, as the port's.
        held: the port's names of the tensors that hold their numbers.
        forms: the rearrangements that fit, the likeliest first.
        chosen: which of them is right.
    """

    names: tuple[str, ...]
    held: tuple[str, ...]
    forms: tuple[Rearrangement, ...]
    chosen: int = 0

    @property
    def form(self) -> Rearrangement:
        """The rearrangement that is right."""
        return self.forms[self.chosen]

    def choosing(self, chosen: int) -> View:
        """Return the view with another form."""
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
        ways: for each way the index of the form of each of these views, the likeliest way first.
    """

    views: tuple[tuple[int, ...], ...]
    ways: tuple[tuple[int, ...], ...]


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
        for several in choice.views:
            for i, chosen in zip(several, way, strict=True):
                views[i] = views[i].choosing(chosen)
        return replace(self, views=tuple(views))

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
