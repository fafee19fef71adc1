"""The training objective of a family: targets, and one loss in each framework. No framework is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """An input of a network, or its target: an array in PyTorch's layout.

    Attributes:
        shape: with the batch first.
        below: for whole numbers, the first one that is too large; None for real numbers.
        ignored: a target that does not count; one target in ten is set to it.
        padded: whether the whole numbers are texts (batch, length) that may end early. There are zeros only after a
            text.
    """

    shape: Shape
    below: int | None = None
    ignored: int | None = None
    padded: bool = False

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return random values: float64, normally distributed; or int64."""
        if self.below is None:
            return rng.standard_normal(self.shape)
        drawn = rng.integers(0, self.below, self.shape)
        if self.padded:
            lengths = rng.integers(1, self.shape[1] + 1, (self.shape[0], 1))
            lengths[0] = self.shape[1]
            drawn = rng.integers(1, self.below, self.shape) * (np.arange(self.shape[1]) < lengths)
        if self.ignored is not None:
            drawn[rng.random(self.shape) < 0.1] = self.ignored
        return drawn


@dataclass(frozen=True)
class Objective:
    """A loss of what a network returns and of targets, the same in both frameworks.

    Attributes:
        targets: gives the targets of a batch of examples of a size. Both losses get the targets in this layout.
        torch: the loss in PyTorch, as "module:function"; it takes outputs and targets, and returns a scalar.
        flax: the loss in JAX, for both Flax ports.
    """

    targets: Callable[[Any, int, Shape], Input]
    torch: str
    flax: str

    def in_torch(self) -> Callable[[Any, Any], Any]:
        """Return the loss in PyTorch."""
        return _function(self.torch)

    def in_flax(self) -> Callable[[Any, Any], Any]:
        """Return the loss in JAX."""
        return _function(self.flax)


def _function(place: str) -> Callable[[Any, Any], Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


CLASSIFICATION = Objective(
    targets=lambda spec, batch, size: Input((batch,), below=spec.num_classes),
    torch="ports.torch_losses:classification",
    flax="ports.losses:classification",
)
"""The mean cross-entropy of logits (batch, classes) and labels (batch,)."""

NEXT_TOKEN = Objective(
    targets=lambda spec, batch, size: Input((batch, *size), below=spec.vocabulary),
    torch="ports.torch_losses:next_token",
    flax="ports.losses:next_token",
)
"""The mean cross-entropy of logits (batch, length, tokens) and of the tokens that follow (batch, length)."""

UNLABELLED = 255
"""The label of pixels that do not count, as in the files of PASCAL VOC and Cityscapes."""

SEGMENTATION = Objective(
    targets=lambda spec, batch, size: Input((batch, *size), below=spec.num_classes, ignored=UNLABELLED),
    torch="ports.torch_losses:segmentation",
    flax="ports.losses:segmentation",
)
"""The mean cross-entropy of every labelled pixel; half of the auxiliary head's is added."""
