"""The quantities that are compared, and what one run of a network gives: a table of tensors a quantity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

Tensors = dict[str, np.ndarray]
Observation = dict[str, Tensors]


@dataclass(frozen=True)
class Probe:
    """What a network is fed.

    Attributes:
        images: float64 (batch, channels, height, width).
        labels: int64 (batch,).
    """

    images: np.ndarray
    labels: np.ndarray


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


def outputs(values: object, nchw: bool = True) -> Tensors:
    """A network's output as named NCHW tensors: logits, or a tuple of feature maps."""
    parts = values if isinstance(values, tuple | list) else [values]
    arrays = [np.asarray(part) if nchw else to_nchw(np.asarray(part)) for part in parts]
    return {"output" if len(arrays) == 1 else f"output.{i}": array for i, array in enumerate(arrays)}


def to_nchw(array: np.ndarray) -> np.ndarray:
    """An activation of a Flax port in PyTorch's layout (a view)."""
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
