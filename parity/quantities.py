"""The quantities that are compared, and what one run of a network gives: a table of tensors a quantity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from parity.layouts import Tensors

# In the order of the table; all nine are measured for every port.
QUANTITIES = {
    "output.eval": "the network's output with running statistics",
    "layer.eval": "every layer's output with running statistics, in execution order",
    "output.train": "the network's output with the batch's statistics",
    "layer.train": "every layer's output with the batch's statistics, in execution order",
    "loss": "mean cross-entropy in train mode",
    "gradient.parameter": "the loss's gradient with respect to every parameter",
    "gradient.input": "the loss's gradient with respect to the images",
    "statistics": "BatchNorm's running statistics after one batch",
    "training.parameter": "what some steps of SGD add to every parameter",
}

Observation = dict[str, Tensors]


@dataclass(frozen=True)
class Probe:
    """What a network is fed.

    Attributes:
        inputs: arrays, or nested tuples and dicts of them, in PyTorch's layout; numbers that are not whole in float64.
        loss: what is differentiated.
        layouts: by the name of an input (`input.0`), its layout in Flax (`parity.layouts.LAYOUTS`).
        keywords: what is passed by name.
        channels_last: whether PyTorch keeps images in memory as Flax does, so that it adds their numbers in another
            order.
        tensors: the parameters and statistics that are compared; by default all of the reference's.
    """

    inputs: tuple[Any, ...]
    loss: Loss
    layouts: Mapping[str, str] = field(default_factory=dict)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    tensors: Collection[str] | None = None


@dataclass(frozen=True)
class Loss:
    """A function from a network's output to a number, written in both frameworks.

    Attributes:
        torch: from PyTorch's output.
        flax: from the layouts of the outputs (by their names) to the function of Flax's output.
    """

    torch: Callable[[Any], Any]
    flax: Callable[[Mapping[str, str]], Callable[[Any], Any]]


@dataclass(frozen=True)
class SGD:
    """The training that is compared: `torch.optim.SGD` with L2 weight decay, its learning rate changing every step.

    A constant learning rate could not show a schedule that is off by one; fewer than three steps could not show a
    weight decay in the wrong place.
    """

    steps: int
    learning_rate: float
    decay: float = 0.8
    momentum: float = 0.9
    weight_decay: float = 5e-4

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return tuple(self.learning_rate * self.decay**step for step in range(self.steps))
