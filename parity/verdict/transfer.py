"""Whether the weights of two models are the same, and which tensors are not."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from parity.numerics import bounds
from parity.numerics.layouts import wide
from parity.pairing.pairs import Pair, Pairing
from parity.reports.report import Row
from parity.running.model_layers import COUNTER, OPTIONAL


@dataclass(frozen=True)
class MisfittingLayer:
    """A layer of the port with other tensors than PyTorch's, or with tensors of other shapes.

    Attributes:
        text: says which tensors, and what to do.
        lacks_bias: whether the missing bias is the only difference.
    """

    pair: Pair
    text: str
    lacks_bias: bool


@dataclass(frozen=True)
class DifferingTensor:
    """The first tensor of a layer that holds other numbers than PyTorch's.

    Attributes:
        leaf: the name of the tensor in its layer.
        theirs: the port's numbers in PyTorch's layout, in float64.
        distance: relative to the size of PyTorch's tensor.
    """

    pair: Pair
    leaf: str
    theirs: np.ndarray
    distance: float


@dataclass(frozen=True)
class BiasedLayer:
    """A layer of the port with a bias that PyTorch's layer does not have and that training would move."""

    pair: Pair


@dataclass(frozen=True)
class UntiedTensors:
    """Two layers of the port with separate tensors, where PyTorch's layers share one."""

    first: Pair
    second: Pair
    leaf: str


@dataclass(frozen=True)
class WeightsVerdict:
    """The result of comparing the weights.

    Attributes:
        row: the row `weights`.
        layers: what is wrong in each wrong layer, in the order of the pairing.
    """

    row: Row
    untied: tuple[UntiedTensors, ...]
    layers: tuple[MisfittingLayer | DifferingTensor | BiasedLayer, ...]

    @property
    def misfits(self) -> list[MisfittingLayer]:
        """The layers that cannot hold PyTorch's tensors: nothing can be run with these weights."""
        return [layer for layer in self.layers if isinstance(layer, MisfittingLayer)]

    @property
    def tied(self) -> set[str]:
        """PyTorch's names of the layers that share a tensor in PyTorch alone."""
        return {pair.torch.name for untied in self.untied for pair in (untied.first, untied.second)}


def judge(port: str, pairing: Pairing, more_biases: Container[str] = ()) -> WeightsVerdict:
    """Compare the weights of all paired layers.

    Args:
        more_biases: PyTorch's layers without a bias whose counterpart has one that training would move.
    """
    layers: list[MisfittingLayer | DifferingTensor | BiasedLayer] = []
    worst = ("", 0.0)
    for p in pairing.pairs:
        if p.torch.name in more_biases:
            layers.append(BiasedLayer(p))
            worst = (p.torch.name, np.inf)
        if (misfit := _misfit(p)) is not None:
            layers.append(misfit)
            worst = (p.torch.name, np.inf)
            continue
        differing = _differing(p)
        layers += differing[:1]
        for tensor in differing:
            if tensor.distance > worst[1]:
                worst = (p.torch.tensors[tensor.leaf], tensor.distance)
    untied = _untied(pairing)
    name, far = worst
    row = Row(port, "weights", name or "all", far, 0.0, ok=not layers and not untied)
    return WeightsVerdict(row, untied, tuple(layers))


def _shapes(p: Pair) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the shapes of PyTorch's and the port's tensors, in PyTorch's layout."""
    mine, theirs = ({n: v.shape for n, v in side.values.items() if n not in OPTIONAL} for side in (p.torch, p.flax))
    return mine, theirs


def _misfit(p: Pair) -> MisfittingLayer | None:
    """Return tensors that one side lacks or has in another shape; None if there are none."""
    mine, theirs = _shapes(p)
    if mine == theirs:
        return None
    parts = [f"{n} {s} is missing" for n, s in mine.items() if n not in theirs]
    parts += [f"{n} {s} is more than PyTorch has" for n, s in theirs.items() if n not in mine]
    parts += [f"{n} is {theirs[n]}, PyTorch's is {s}" for n, s in mine.items() if theirs.get(n, s) != s]
    text = f"{p.flax.name} in PyTorch's layout: {'; '.join(parts)}; build the layer as PyTorch's is built"
    return MisfittingLayer(p, text, lacks_bias={n: s for n, s in mine.items() if n != "bias"} == theirs)


def _differing(p: Pair) -> list[DifferingTensor]:
    """Return the tensors of a layer that hold other numbers."""
    found = []
    for leaf, mine in p.torch.values.items():
        if leaf == COUNTER or leaf not in p.flax.values:
            continue
        theirs = wide(p.flax.values[leaf])
        far = bounds.distance(theirs, mine) / (bounds.norm(mine) or 1.0)
        if far > 0:
            found.append(DifferingTensor(p, leaf, theirs, far))
    return found


def _untied(pairing: Pairing) -> tuple[UntiedTensors, ...]:
    found, first = [], {}
    for p in pairing.pairs:
        for leaf, mine in p.torch.values.items():
            if leaf in p.flax.values and mine.size > 1 and first.setdefault(id(mine), p) is not p:
                found.append(UntiedTensors(first[id(mine)], p, leaf))
    return tuple(found)
