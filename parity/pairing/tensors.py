"""Tensors that are left when the layers are paired, and which of them hold the same numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parity.numerics.layouts import wide
from parity.pairing.likeness import LETTERED, ROLES, Token, tokens, words
from parity.running.model_layers import OPTIONAL, ModelLayer, normal_name
from ports.weights.form.rearrangement import Rearrangement

NEVER = 10**9  # the rank of what is never called


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor that is left.

    Attributes:
        layer: the layer it was taken from.
        leaf: its name in that layer.
        full: its name in its model.
        module: the name of its module.
        rank: when the module is called.
        tokens: the words and numbers of its full name.
        module_tokens: those of its module's.
    """

    layer: ModelLayer
    leaf: str
    full: str
    module: str
    rank: int
    tokens: tuple[Token, ...] = ()
    module_tokens: tuple[Token, ...] = ()

    @property
    def value(self) -> np.ndarray:
        return self.layer.values[self.leaf]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def heads(self) -> int:
        """Into how many heads the port cuts the first axis; 1 where it does not."""
        return self.layer.heads.get(self.leaf, 1)

    @property
    def last(self) -> str:
        """Its name within its module."""
        return self.full.removeprefix(f"{self.module}.") if self.module else self.full

    @cached_property
    def content(self) -> tuple[int, int] | None:
        """Two sums of the numbers' bits: the same in every order, and added up over several tensors.

        None where all numbers are equal: they tell nothing.
        """
        if self.value.size < 2 or self.value.dtype.kind not in "fiuc" or not np.ptp(self.value):
            return None
        bits = np.ascontiguousarray(wide(self.value)).reshape(-1).view(np.uint64)
        return int(bits.sum(dtype=np.uint64)), int(((bits >> np.uint64(20)) ** 2).sum(dtype=np.uint64))

    @property
    def role(self) -> str:
        """What it is in its module: `weight`, `bias`, or its own name."""
        roles = ROLES | LETTERED
        known = [word for word in words(self.last) if word in roles]
        whole = [word for word in known if len(word) > 1]  # the `w` of `r_w_bias` says nothing
        return roles[(whole or known)[0]] if known else normal_name(self.last)


@dataclass(frozen=True)
class Match:
    """Tensors of both models that hold the same numbers.

    Attributes:
        forms: the rearrangements that fit, the likeliest first.
        rivals: all groups of the port's tensors that may be this one, where neither names nor shapes tell.
        spelled: whether the name of one tensor says in which order it holds several.
        plainly: whether equal names say that the port holds the tensor as PyTorch does, where nothing else tells.
    """

    torch: tuple[Tensor, ...]
    flax: tuple[Tensor, ...]
    forms: tuple[Rearrangement, ...]
    why: str
    rivals: tuple[tuple[Tensor, ...], ...] = ()
    spelled: bool = False
    plainly: bool = False


def tensors_of(layers: Iterable[ModelLayer]) -> list[Tensor]:
    """Return the tensors of layers of one model."""
    found = [
        (layer, leaf, layer.owner if layer.leaf else layer.name.partition("@")[0])
        for layer in layers
        for leaf in layer.values
        if leaf not in OPTIONAL
    ]
    names = tokens(layer.tensors[leaf] for layer, leaf, _ in found)
    modules = tokens(module for _, _, module in found)
    return [
        Tensor(layer, leaf, layer.tensors[leaf], module, _rank(layer), names[layer.tensors[leaf]], modules[module])
        for layer, leaf, module in found
    ]


def _rank(layer: ModelLayer) -> int:
    if layer.leaf:
        return 1000 * layer.owner_rank
    return NEVER if layer.rank is None or not layer.seen else layer.rank
