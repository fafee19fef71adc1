"""The options of a check: a record for somebody's own pair, and one for networks of this package.

`PairSettings` and `NetworkSettings` give the same names to type checkers, as keywords of `parity.check` and
`parity.check_network`. No framework is imported.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np

from parity.numerics.masking import positions
from ports.errors import UserError

if TYPE_CHECKING:
    import optax

PORTS, BATCH = ("nnx", "linen"), 2

# Height and width of an image: what Pillow's formats can hold.
LARGEST = 65535

# The kinds of check, as messages call them.
NAMED, LIVE, PAIR = "a named network", "live networks of this package", "two live models with inputs after them"

# A name of `ports.optimizers.VARIANTS`; or a function from PyTorch's parameters to an optimizer of `torch.optim`, or
# to (optimizer, scheduler).
Optimizer = str | Callable[..., Any]
# The function to differentiate, in PyTorch and in JAX: from a model's output to a number.
Losses = tuple[Callable[[Any], Any], Callable[[Any], Any]]
# The callable in place of a model: a function (model, *inputs, **keywords), or the name of a method.
Caller = Callable[..., Any] | str
# An array of booleans, of any framework.
Mask = Any

# The options that are dicts by argument name, and pairs of options that cannot both have the same name.
BY_NAME = ("layouts", "keywords", "torch_keywords", "flax_keywords", "modes")
CLASHES = (
    ("keywords", "torch_keywords"),
    ("keywords", "flax_keywords"),
    ("keywords", "modes"),
    ("torch_keywords", "modes"),
    ("flax_keywords", "modes"),
)


def quiet(_: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Options:
    """The options of every kind of check.

    Attributes:
        steps: of training.
        seed: of initial weights, labels and the signs of the perturbation.
        optimizer: the optimizer of PyTorch's model; by default SGD with momentum and weight decay.
        tx: the optax transform that trains the ports, to compare your own with PyTorch's optimizer; by default the one
            of `ports.optim` that computes the same.
        clip_grad_norm: PyTorch clips its gradients to this norm (`torch.nn.utils.clip_grad_norm_`) before a step.
        accumulate: PyTorch sums the gradients of this many passes before a step.
        dtypes: working precisions, `float32` and `bfloat16`, in which every side is also compared with float64
            (`verdict.precision` has the policies). Without `decide` they decide nothing.
        decide: the verdict is no parity if a port is less precise than PyTorch in one of `dtypes`, at any place.
        tf32: whether products of float32 numbers are rounded to TF32, in both frameworks; by default each keeps its
            setting. NVIDIA's
            GPUs only.
        device: `cpu` or `gpu`: where both frameworks run.
        progress: called with the text of each stage before it begins.

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
    decide: bool = False
    tf32: bool | None = None
    device: str = "cpu"
    progress: Callable[[str], None] = quiet

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 0)
        _whole("seed", self.seed, 0)
        if self.decide and not self.types:
            raise UserError("decide: got no dtypes, expected float32 or bfloat16: the types in which ports are judged")

    @property
    def types(self) -> tuple[str, ...]:
        """The working precisions, each once."""
        return tuple(dict.fromkeys([self.dtypes] if isinstance(self.dtypes, str) else self.dtypes))


@dataclass(frozen=True)
class CallOptions:
    """How somebody's own models are called, apart from their inputs.

    Attributes:
        layouts: by the name of an input (`input`; of several `input.0`, `input.key`) how Flax holds it:
            `channels_last` (the default from four dimensions on), `same`, `batch_second` or `frames_first` (a video,
            whose frames stay in front of its channels).
        keywords: arguments that both models get by name, in PyTorch's layout.
        torch_keywords: arguments that only the PyTorch model gets by name.
        flax_keywords: arguments that only the Flax model gets by name; arrays in the layout that it takes.
        torch_call: the callable in place of the PyTorch model: a function `(model, *inputs, **keywords)` that gives
            the outputs, or the name of a method (`"encode"`).
        flax_call: the same for Flax; the function gets the NNX model, or Linen's bound module.
        modes: arguments that set the mode, by name: `{"is_training_mode": (False, True)}` is False in eval mode and
            True in train mode. Each goes to the side that takes it. Those of `numerics.calls.MODES` (`train`,
            `deterministic`, …) are known.

    Raises:
        UserError: names that are not strings, a name that is passed twice, a mode without two values, a call that is
            neither a function nor a name.
    """

    layouts: Mapping[str, str] | None = None
    keywords: Mapping[str, Any] | None = None
    torch_keywords: Mapping[str, Any] | None = None
    flax_keywords: Mapping[str, Any] | None = None
    torch_call: Caller | None = None
    flax_call: Caller | None = None
    modes: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        by_name = {name: getattr(self, name) or {} for name in BY_NAME}
        for option, value in by_name.items():
            if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
                raise UserError(f"{option}: got {value!r}, expected a dict of values by the names of arguments")
        for name, both in by_name["modes"].items():
            if not isinstance(both, tuple | list) or len(both) != 2:
                raise UserError(f"modes: {name}: got {both!r}, expected two values: (in eval mode, in train mode)")
        for a, b in CLASHES:
            if twice := sorted(by_name[a].keys() & by_name[b].keys()):
                raise UserError(f"got {twice[0]!r} in both {a} and {b}, expected it in one of them")
        for option in ("torch_call", "flax_call"):
            value = getattr(self, option)
            if not (value is None or isinstance(value, str) or callable(value)):
                said = "expected a function (model, *inputs, **keywords) or the name of a method"
                raise UserError(f"{option}: got {value!r}, {said}")


@dataclass(frozen=True)
class MoveOptions(CallOptions):
    """The options of `parity.move`.

    Attributes:
        names: Flax's layer names by PyTorch's, where they cannot be paired with certainty.
    """

    names: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class PairOptions(Options, CallOptions):
    """The options of a check of somebody's own pair.

    Attributes:
        names: Flax's layer names by PyTorch's, where they cannot be paired with certainty.
        loss: the functions to differentiate; by default the mean of every output times fixed random numbers.
        accept: names of `traps.catalogue.LAYERS` (`parity traps` lists them): differences that are intended.
        branches: list the branches of the models' own code that these inputs do not take; needs the `coverage` package.
        mask: booleans (batch, length), true where a position of a sequence counts. In outputs and layers that begin
            with these axes in PyTorch, other positions are not compared, and the loss gets zeros there.
    """

    names: Mapping[str, str | None] | None = None
    loss: Losses | None = None
    accept: Sequence[str] = ()
    branches: bool = False
    mask: Mask | None = None

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        CallOptions.__post_init__(self)
        if self.mask is not None:
            positions(self.mask)


@dataclass(frozen=True)
class NetworkOptions(Options):
    """The options of a check of networks of this package.

    Attributes:
        ports: which ports of a named network.
        images: a file or a folder of photographs; by default two of this package.
        image_size: height and width in pixels; by default the network's height and an odd width (224x193, 32x27).
        batch: number of images.
        weights: the torch form, or a file of them; by default initial weights with random BatchNorm parameters and
            statistics. (Given weights are used as they are.)
        reduced: check a large network with only a few of its blocks (they are all alike) and with fewer classes; the
            report says what is left out. Small networks are checked whole.

    Raises:
        UserError: an unknown port or none, a number out of range.
    """

    ports: Sequence[str] = PORTS
    images: str | Path | None = None
    image_size: tuple[int, int] | None = None
    batch: int = BATCH
    weights: str | Path | Mapping[str, np.ndarray] | None = None
    reduced: bool = False

    def __post_init__(self) -> None:
        if self.reduced and self.weights is not None:
            raise UserError("got weights and reduced, expected one of them: weights are those of the whole network")
        if unknown := [port for port in self.ports if port not in PORTS]:
            raise UserError(f"unknown port {unknown[0]!r}; expected {' or '.join(PORTS)}")
        if not self.ports:
            raise UserError(f"ports: got none, expected {' or '.join(PORTS)}")
        _whole("batch", self.batch, 1)
        super().__post_init__()


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or not least <= value < 2**63:
        raise UserError(f"{name}: got {value!r}, expected a whole number from {least}")


ATTRIBUTES = "Attributes:\n"


def _with_inherited(record: type) -> str:
    """Return the docstring of a record with the inherited fields before its own, so that `help` shows all of them."""
    above, _, own = inspect.cleandoc(record.__doc__ or "").partition(ATTRIBUTES)
    bases = (inspect.cleandoc(base.__doc__ or "") for base in record.__mro__[-2:0:-1])
    inherited = (text.partition(ATTRIBUTES)[2].partition("\n\n")[0] for text in bases if ATTRIBUTES in text)
    return above + ATTRIBUTES + "\n".join([*inherited, own])


for _record in (MoveOptions, PairOptions, NetworkOptions):
    _record.__doc__ = _with_inherited(_record)


class _Settings(TypedDict, total=False):
    steps: int
    seed: int
    optimizer: Optimizer
    tx: optax.GradientTransformation | None
    clip_grad_norm: float | None
    accumulate: int
    dtypes: str | Sequence[str]
    decide: bool
    tf32: bool | None
    device: str
    progress: Callable[[str], None]


class _CallSettings(TypedDict, total=False):
    layouts: Mapping[str, str] | None
    keywords: Mapping[str, Any] | None
    torch_keywords: Mapping[str, Any] | None
    flax_keywords: Mapping[str, Any] | None
    torch_call: Caller | None
    flax_call: Caller | None
    modes: Mapping[str, Sequence[Any]] | None


class MoveSettings(_CallSettings, total=False):
    """`MoveOptions` as keywords."""

    names: Mapping[str, str | None] | None


class PairSettings(_Settings, _CallSettings, total=False):
    """`PairOptions` as keywords."""

    names: Mapping[str, str | None] | None
    loss: Losses | None
    accept: Sequence[str]
    branches: bool
    mask: Mask | None


class NetworkSettings(_Settings, total=False):
    """`NetworkOptions` as keywords."""

    ports: Sequence[str]
    images: str | Path | None
    image_size: tuple[int, int] | None
    batch: int
    weights: str | Path | Mapping[str, np.ndarray] | None
    reduced: bool


EVERY = tuple(one.name for one in fields(Options))
OF_PAIRS = tuple(one.name for one in fields(PairOptions) if one.name not in EVERY)
OF_NETWORKS = tuple(one.name for one in fields(NetworkOptions) if one.name not in EVERY)

# The kinds of check that use an option, for options that not all of them use.
USED = {
    **dict.fromkeys(OF_PAIRS, (PAIR,)),
    **dict.fromkeys(OF_NETWORKS, (NAMED, LIVE)),
    **dict.fromkeys(("ports", "weights", "reduced"), (NAMED,)),
}

# The keys of the dict that a function may return after a pair and its inputs.
GIVEN = tuple(name for name in (*OF_PAIRS, *EVERY) if name != "progress")

Record = TypeVar("Record", PairOptions, NetworkOptions)


def _known(given: Iterable[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1, 0)[0]
        raise UserError(f"got the option {unknown[0]!r}, expected one of {', '.join(known)}; {near} is nearest")


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, Mapping | Sequence) and not value)


def move_record(given: Mapping[str, Any]) -> MoveOptions:
    """Return the options of `parity.move`. None, and an empty option, ask for the default.

    Raises:
        UserError: an option that `move` does not have, or a value that the option does not take.
    """
    known = [one.name for one in fields(MoveOptions)]
    if of_check := [name for name in given if name in GIVEN and name not in known]:
        raise UserError(f"got the option {of_check[0]!r} of parity.check, expected one of {', '.join(known)}")
    _known(given, known)
    return MoveOptions(**{name: value for name, value in given.items() if not _empty(value)})


def record(kind: str, into: type[Record], given: Mapping[str, Any]) -> Record:
    """Return the options of a check of this kind. None, and an empty option of a pair, ask for the default.

    Raises:
        UserError: an option that no check has, or that this kind does not use; it lists all of them, and what each is
            for.
    """
    known = (*EVERY, *OF_PAIRS, *OF_NETWORKS)
    _known(given, known)
    asked = {n: value for n, value in given.items() if not (_empty(value) if n in OF_PAIRS else value is None)}
    unused: dict[str, list[str]] = {}
    for name in known:
        if name in asked and kind not in USED.get(name, (kind,)):
            unused.setdefault(" or ".join(USED[name]), []).append(name)
    if unused:
        said = "; ".join(f"{', '.join(names)}: only for {kinds}" for kinds, names in unused.items())
        raise UserError(f"got {kind}: {said}")
    return into(**asked)
