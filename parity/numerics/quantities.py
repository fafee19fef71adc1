"""The quantities that are compared, and the results of one run of a network: a table of tensors for each quantity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.numerics.calls import Call
from parity.numerics.layouts import Tensors
from parity.numerics.masking import counted
from parity.numerics.pins import Pins

# In the order of the table; all are measured for every port.
QUANTITIES = {
    "output.eval": "the network's output with running statistics",
    "layer.eval": "every layer's output with running statistics, in execution order",
    "output.train": "the network's output with the batch's statistics",
    "layer.train": "every layer's output with the batch's statistics, in execution order",
    "loss": "mean cross-entropy in train mode",
    "gradient.parameter": "the loss's gradient with respect to every parameter",
    "gradient.input": "the loss's gradient with respect to the images",
    "statistics": "BatchNorm's running statistics after one batch",
    "training.parameter": "what the first step, three steps and all steps of training add to every parameter",
    "training.state": "the optimizer's tensors after them (where the ports' optimizer keeps the same ones)",
}

# What random draws give while the check runs, in both frameworks. Dropout and Bernoulli draws keep everything. So does
# a uniform number in the middle, in `floor(keep + u)`, `u < keep` and `u > p`, which models use with rates below one
# half. The number is not exactly one half, because `2 * u - 1` would then be zero and hide mistakes.
UNIFORM = 0.501
NORMAL = 0.5

Observation = dict[str, Tensors]


@dataclass(frozen=True)
class Probe:
    """The inputs of a network, and how it is called.

    Attributes:
        inputs: arrays, or nested tuples and dicts of them, in PyTorch's layout; numbers that are not whole in float64.
        loss: what is differentiated.
        layouts: by the name of an input (`input.0`), its layout in Flax (`numerics.layouts.LAYOUTS`).
        keywords: the arguments that both sides get by name.
        torch_call, flax_call: how each side is called, and the arguments that only this side gets by name.
        mask: booleans (batch, length): the positions of sequences that count; by default all.
        packed: booleans (batch, length): the positions of the texts that PyTorch packs. Layers are compared only there,
            because a port's layers may give anything after a text.
        channels_last: whether PyTorch keeps images in memory as Flax does, which makes it add their numbers in another
            order.
        tensors: the parameters and statistics that are compared; by default all of the reference's.
        idle: parameters of the port that get no gradient in PyTorch, and must stay what they are in training.
        frozen: those of them that PyTorch's training never changes, whatever their gradient: buffers, frozen
            parameters.
        folded: the parts of PyTorch's second recurrent biases that the port has; the check trains them on neither side.
        fixed: parameters that PyTorch trains and that are not parameters of the port.
        alone: PyTorch's outputs without a counterpart in the port, which are left out.
        in_place: whether PyTorch's layers may change their input, so that recorded values must be copied.
        drops: whether PyTorch's dropout scales the values that it keeps; False if the port has no dropout.
        pins: gets the places where PyTorch's code fixes a type, which is lifted to float64; None in a working
            precision, in which nothing is lifted.
    """

    inputs: tuple[Any, ...]
    loss: Loss
    layouts: Mapping[str, str] = field(default_factory=dict)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    torch_call: Call = field(default_factory=lambda: Call("torch"))
    flax_call: Call = field(default_factory=lambda: Call("flax"))
    mask: np.ndarray | None = None
    packed: np.ndarray | None = None
    channels_last: bool = False
    tensors: Collection[str] | None = None
    idle: Collection[str] = ()
    frozen: Collection[str] = ()
    folded: Collection[str] = ()
    fixed: Collection[str] = ()
    alone: Collection[str] = ()
    in_place: bool = True
    drops: bool = True
    pins: Pins | None = field(default_factory=lambda: Pins("pytorch"))

    def counted(self, array: np.ndarray) -> np.ndarray:
        """Return an array in PyTorch's layout with zeros at the positions that do not count."""
        return self.in_texts(counted(array, self.mask))

    def in_texts(self, array: np.ndarray) -> np.ndarray:
        """Return features (batch, length, …) with zeros after the packed texts of PyTorch; other arrays as they are."""
        return counted(array, self.packed) if array.ndim > 2 else array


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
class Training:
    """The training that is compared, in both frameworks.

    Parameters and the optimizer's state are compared after one step, after three (one cannot show a weight decay in the
    wrong place) and at the end.

    Attributes:
        steps: of the optimizer.
        optimizer: takes the trained parameters by name and gives what updates them in PyTorch: an optimizer of
            `torch.optim`, or (optimizer, scheduler); the scheduler is stepped after every step of the optimizer.
        transform: the optax transform that updates the ports' parameters.
        clip_grad_norm: the norm that PyTorch's gradients are clipped to before a step, if any; the ports' clipping is
            part of `transform`.
        own: whether `transform` is the caller's.
        prepare: what PyTorch does with the gradients before a step: it clips them.
        accumulate: the number of backward passes whose gradients PyTorch sums before a step; in the ports this is part
            of `transform`, which gets every gradient.
    """

    steps: int
    optimizer: Callable[[Mapping[str, Any]], Any]
    transform: Any
    clip_grad_norm: float | None = None
    accumulate: int = 1
    own: bool = False
    prepare: Callable[[Mapping[str, Any]], None] = lambda _: None

    @property
    def passes(self) -> int:
        """Forward and backward passes; one at least, for the gradients."""
        return max(self.steps * self.accumulate, 1)

    def done(self, number: int) -> int | None:
        """The number of steps done after this pass (from 0), if they are compared then."""
        steps, rest = divmod(number + 1, self.accumulate)
        return steps if not rest and steps in {1, 3, self.steps} and steps <= self.steps else None


def after(step: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under names that say after how many steps they have these values: `conv1.weight@3`."""
    return {f"{name}@{step}": tensor for name, tensor in tensors.items()}


def parameter_of(quantity: str, name: str) -> str:
    """Return the parameter that a tensor of training belongs to: `conv1.weight` of `exp_avg/conv1.weight@3`.

    A state's tensor begins with the optimizer's name for it; a module's own name may hold `/` and `@` too.
    """
    tensor = name.rpartition("@")[0]
    return tensor.partition("/")[2] if quantity == "training.state" else tensor
