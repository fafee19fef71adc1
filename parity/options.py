"""What can be asked of a check: a record for a pair of somebody's own, and one for networks of this package.

`PairSettings` and `NetworkSettings` are the same names for type checkers, as keywords of `parity.check` and
`parity.check_network`. No framework is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np

from ports.errors import UserError

if TYPE_CHECKING:
    import optax

PORTS, BATCH = ("nnx", "linen"), 2

# Height and width of an image: what Pillow's formats can hold.
LARGEST = 65535

# The kinds of check, as messages call them.
NAMED, LIVE, PAIR = "a named network", "live networks of this package", "two live models with inputs behind them"

# A name of `ports.optimizers.VARIANTS`; or a function from PyTorch's parameters to an optimizer of `torch.optim`, or
# to (optimizer, scheduler).
Optimizer = str | Callable[..., Any]
# What is differentiated, in PyTorch and in JAX: from a model's output to a number.
Losses = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def quiet(_: str) -> None:
    """Say nothing of what is about to be done."""


@dataclass(frozen=True)
class Options:
    """What every kind of check can be asked.

    Attributes:
        steps: of training.
        seed: of initial weights, labels and the signs of the perturbation.
        optimizer: what trains PyTorch's model; by default SGD with momentum and weight decay.
        tx: the optax transform that the ports train with, to hold one's own against PyTorch's optimizer; by default
            that of `ports.optim` which computes the same.
        clip_grad_norm: PyTorch clips its gradients to this norm (`torch.nn.utils.clip_grad_norm_`) before a step.
        accumulate: PyTorch sums the gradients of so many passes before a step.
        dtypes: working precisions, `float32` and `bfloat16`, in which every side is measured against float64 besides
            (`verdict.precision` has the policies). They decide nothing.
        tf32: whether float32's products are rounded to TF32, in both frameworks; by default as each has it. NVIDIA's
            GPUs only.
        device: `cpu` or `gpu`: where both frameworks run.
        progress: told what is about to be done.

    Raises:
        UserError: a number out of range.
    """

    steps: int = 3
    seed: int = 0
    optimizer: Optimizer = "sgd"
    tx: optax.GradientTransformation | None = None
    clip_grad_norm: float | None = None
    accumulate: int = 1
    dtypes: str | Sequence[str] = ()
    tf32: bool | None = None
    device: str = "cpu"
    progress: Callable[[str], None] = quiet

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 0)
        _whole("seed", self.seed, 0)

    @property
    def types(self) -> tuple[str, ...]:
        """The working precisions, each once."""
        return tuple(dict.fromkeys([self.dtypes] if isinstance(self.dtypes, str) else self.dtypes))


@dataclass(frozen=True)
class PairOptions(Options):
    """What the check of somebody's own pair can be asked.

    Attributes:
        names: Flax's layer names by PyTorch's, where they cannot be paired with certainty (`pairing.matching.pair`).
        loss: what is differentiated; by default the mean of every output times fixed random numbers.
        layouts: by the name of an input (`input`; of several `input.0`, `input.key`) how Flax holds it:
            `channels_last` (the default from four dimensions on), `same` or `batch_second`.
        keywords: what is passed by name to both models.
        accept: names of `traps.catalogue.LAYERS` (`parity traps` lists them): differences that are meant.
    """

    names: Mapping[str, str | None] | None = None
    loss: Losses | None = None
    layouts: Mapping[str, str] | None = None
    keywords: Mapping[str, Any] | None = None
    accept: Sequence[str] = ()


@dataclass(frozen=True)
class NetworkOptions(Options):
    """What the check of networks of this package can be asked.

    Attributes:
        ports: which ports of a named network.
        images: a file or a folder of photographs; by default two of this package.
        image_size: height and width in pixels; by default the network's height and an odd width (224x193, 32x27).
        batch: number of images.
        weights: the torch form, or a file of them; by default initial weights with random BatchNorm parameters and
            statistics. (Given weights are used as they are.)

    Raises:
        UserError: an unknown port or none, a number out of range.
    """

    ports: Sequence[str] = PORTS
    images: str | Path | None = None
    image_size: tuple[int, int] | None = None
    batch: int = BATCH
    weights: str | Path | Mapping[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if unknown := [port for port in self.ports if port not in PORTS]:
            raise UserError(f"unknown port {unknown[0]!r}; expected {' or '.join(PORTS)}")
        if not self.ports:
            raise UserError(f"ports: got none, expected {' or '.join(PORTS)}")
        _whole("batch", self.batch, 1)
        super().__post_init__()


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or not least <= value < 2**63:
        raise UserError(f"{name}: got {value!r}, expected a whole number from {least}")


class _Settings(TypedDict, total=False):
    steps: int
    seed: int
    optimizer: Optimizer
    tx: optax.GradientTransformation | None
    clip_grad_norm: float | None
    accumulate: int
    dtypes: str | Sequence[str]
    tf32: bool | None
    device: str
    progress: Callable[[str], None]


class PairSettings(_Settings, total=False):
    """`PairOptions` as keywords."""

    names: Mapping[str, str | None] | None
    loss: Losses | None
    layouts: Mapping[str, str] | None
    keywords: Mapping[str, Any] | None
    accept: Sequence[str]


class NetworkSettings(_Settings, total=False):
    """`NetworkOptions` as keywords."""

    ports: Sequence[str]
    images: str | Path | None
    image_size: tuple[int, int] | None
    batch: int
    weights: str | Path | Mapping[str, np.ndarray] | None


EVERY = tuple(one.name for one in fields(Options))
OF_PAIRS = tuple(one.name for one in fields(PairOptions) if one.name not in EVERY)
OF_NETWORKS = tuple(one.name for one in fields(NetworkOptions) if one.name not in EVERY)

# The kinds of check that use an option, where not all do.
USED = {
    **dict.fromkeys(OF_PAIRS, (PAIR,)),
    **dict.fromkeys(OF_NETWORKS, (NAMED, LIVE)),
    **dict.fromkeys(("ports", "weights"), (NAMED,)),
}

Record = TypeVar("Record", PairOptions, NetworkOptions)


def record(kind: str, into: type[Record], given: Mapping[str, Any]) -> Record:
    """Return the options of a check of this kind. None, and an empty option of a pair, ask for the default.

    Raises:
        UserError: an option that no check has, or that this kind does not use: all of them, and what each is for.
    """
    known = (*EVERY, *OF_PAIRS, *OF_NETWORKS)
    if unknown := [name for name in given if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1, 0)[0]
        raise UserError(f"got the option {unknown[0]!r}, expected one of {', '.join(known)}; {near} is nearest")
    asked = {n: value for n, value in given.items() if (bool(value) if n in OF_PAIRS else value is not None)}
    unused: dict[str, list[str]] = {}
    for name in known:
        if name in asked and kind not in USED.get(name, (kind,)):
            unused.setdefault(" or ".join(USED[name]), []).append(name)
    if unused:
        said = "; ".join(f"{', '.join(names)}: only for {kinds}" for kinds, names in unused.items())
        raise UserError(f"got {kind}: {said}")
    return into(**asked)
