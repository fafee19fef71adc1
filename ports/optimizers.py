"""The known optimizers: one row each, which every other part of the project reads.

To add an optimizer, write its transform in `ports/optim.py` and a row in `OPTIMIZERS`. These read the rows:

| reads                                      | to                                                                   |
|--------------------------------------------|----------------------------------------------------------------------|
| `ports.weights.optimizer`, files with it   | move a state between the frameworks: live, and through files         |
| `parity.training`, `parity check --help`   | train both sides with an optimizer by its name                       |
| `parity.run_flax`                          | find PyTorch's tensors in the states of optax                        |
| `parity.traps.training`                    | try a mistake only where the optimizer can have it                   |
| the tests of all of these                  | compare each row with PyTorch, `ports.optim` and optax               |

The rows hold names of classes and functions, so that this module loads no framework. A class that no row names is
refused: RAdam, NAdam, AdaBelief and others have tensors of the same names that mean something else.

optax's RMSprop keeps the momentum multiplied by the learning rate, and its AMSGrad keeps the largest corrected square.
PyTorch keeps neither of the two, so they have no node. optax's Adamax and NAdam have the class of Adam's state, so
nothing can tell them from Adam, and the row of Adamax has no node. A file does not name optax's class: the fields
decide, and a state with `count, mu, nu` is read as Adam's, although AdaBelief, RAdam and Yogi have the same fields.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Options = Mapping[str, float | bool]


@dataclass(frozen=True)
class Node:
    """A NamedTuple in a state of optax.

    Attributes:
        name: top package and class.
        tensors: fields that hold a tree with the structure of the parameters, and PyTorch's name for it (`*`: a dict by
            such names).
        counts: fields that hold the number of steps done.
        inner: fields that hold nested states.
        pending: fields that are 0 unless gradients wait for their step.
        other: fields that stay as they are.
        scaled: whether the tensors depend on the place of the transform in a chain: after the learning rate, a trace
            holds the buffer multiplied by the rate. The check does not compare such tensors.
        note: what a person should know who takes such a state from a file.
    """

    name: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    scaled: bool = False
    note: str = ""

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether a table in a file has these fields; a format may drop empty ones."""
        needed = {*self.counts, *self.pending, *self.inner[:1], *(f for f, slot in self.tensors.items() if slot != "*")}
        return needed <= set(keys) <= {*self.tensors, *self.counts, *self.inner, *self.pending, *self.other}


@dataclass(frozen=True)
class Form:
    """One class of PyTorch's that has the states of a row.

    Attributes:
        torch: a class of `torch.optim`.
        transform: the function of `ports.optim` that computes the same, with the same options.
        variants: its names in the check, each with options that show within three steps.
    """

    torch: str
    transform: str
    variants: Mapping[str, Options]


@dataclass(frozen=True)
class KnownOptimizer:
    """One row.

    Attributes:
        forms: the classes of PyTorch whose states mean the same.
        tensors: the tensors that PyTorch keeps for a parameter, and the option that switches each on (None: always).
        options: the options of a group, besides the learning rate, that change what the optimizer computes.
        nodes: where optax keeps the same numbers.
        optax: optax's own optimizers whose states are known, in words.
        counts: whether PyTorch counts its steps.
        eager: whether PyTorch makes the state at once, not at the first gradient.
        adaptive: whether a step is as large as the learning rate, whatever the gradient.
    """

    forms: tuple[Form, ...]
    tensors: Mapping[str, str | None]
    options: frozenset[str]
    nodes: tuple[Node, ...]
    optax: tuple[str, ...]
    counts: bool = True
    eager: bool = False
    adaptive: bool = True

    @property
    def name(self) -> str:
        return self.forms[0].torch

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(form.torch for form in self.forms)

    @property
    def always(self) -> set[str]:
        """The tensors that every parameter has."""
        return {name for name, option in self.tensors.items() if option is None} or set(self.tensors)

    @property
    def own(self) -> frozenset[str]:
        """The options that together only this optimizer has, or another with all of its options and more."""
        return self.options - {"weight_decay", "eps"}


OPTIMIZERS = (
    KnownOptimizer(
        forms=(
            Form(
                "SGD",
                "sgd",
                {
                    "sgd": {"momentum": 0.9, "weight_decay": 5e-4},
                    "nesterov": {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
                    "dampened": {"momentum": 0.9, "weight_decay": 5e-4, "dampening": 0.5},
                },
            ),
        ),
        tensors={"momentum_buffer": "momentum"},
        options=frozenset({"momentum", "dampening", "weight_decay", "nesterov"}),
        nodes=(Node("optax.TraceState", {"trace": "momentum_buffer"}, scaled=True),),
        optax=("sgd",),
        counts=False,
        adaptive=False,
    ),
    KnownOptimizer(
        forms=(
            Form("Adam", "adam", {"adam": {"weight_decay": 5e-4}, "amsgrad": {"amsgrad": True}}),
            Form("AdamW", "adamw", {"adamw": {"weight_decay": 5e-2}}),
        ),
        tensors={"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
        options=frozenset({"betas", "eps", "weight_decay", "amsgrad"}),
        nodes=(
            Node(
                "optax.ScaleByAdamState",
                {"mu": "exp_avg", "nu": "exp_avg_sq"},
                counts=("count",),
                note="optax's state with mu and nu is taken for Adam's: a file does not name it",
            ),
        ),
        optax=("adam", "adamw"),
    ),
    KnownOptimizer(
        forms=(Form("Adamax", "adamax", {"adamax": {"weight_decay": 5e-4}}),),
        tensors={"exp_avg": None, "exp_inf": None},
        options=frozenset({"betas", "eps", "weight_decay"}),
        nodes=(),
        optax=(),
    ),
    KnownOptimizer(
        forms=(Form("RMSprop", "rmsprop", {"rmsprop": {"momentum": 0.9, "weight_decay": 5e-4}}),),
        tensors={"square_avg": None, "momentum_buffer": "momentum", "grad_avg": "centered"},
        options=frozenset({"alpha", "eps", "weight_decay", "momentum", "centered"}),
        nodes=(
            Node("optax.ScaleByRmsState", {"nu": "square_avg"}),
            Node("optax.ScaleByRStdDevState", {"mu": "grad_avg", "nu": "square_avg"}),
        ),
        optax=("rmsprop without momentum",),
    ),
    KnownOptimizer(
        forms=(Form("Adagrad", "adagrad", {"adagrad": {"weight_decay": 5e-4}}),),
        tensors={"sum": None},
        options=frozenset({"lr_decay", "weight_decay", "initial_accumulator_value", "eps"}),
        nodes=(Node("optax.ScaleByRssState", {"sum_of_squares": "sum"}),),
        optax=("adagrad",),
        eager=True,
    ),
    KnownOptimizer(
        forms=(Form("Adadelta", "adadelta", {"adadelta": {"weight_decay": 5e-4}}),),
        tensors={"square_avg": None, "acc_delta": None},
        options=frozenset({"rho", "eps", "weight_decay"}),
        nodes=(Node("optax.ScaleByAdaDeltaState", {"e_g": "square_avg", "e_x": "acc_delta"}),),
        optax=("adadelta",),
        adaptive=False,
    ),
)

# Options that only one optimizer has. Some of these optimizers have all options of another row besides.
MARKS = {
    "momentum_decay": "NAdam",
    "rho": "Adadelta",
    "lambd": "ASGD",
    "etas": "Rprop",
    "ns_steps": "Muon",
    "beta2_decay": "Adafactor",
    "history_size": "LBFGS",
    "lr_in_momentum": "timm's RMSpropTF",
    "rectify": "AdaBelief",
    "trust_coefficient": "LARS",
}

NODES = (
    Node("ports.State", {"tensors": "*"}, counts=("count",)),
    Node("ports.Accumulated", inner=("inner",), pending=("count",), other=("sums",)),
    *(node for row in OPTIMIZERS for node in row.nodes),
    Node("optax.ScaleByScheduleState", counts=("count",)),
    Node("optax.WrappedScheduleState", counts=("count",)),
    Node("optax.MaskedState", inner=("inner_state",)),
    Node("optax.PartitionState", inner=("inner_states",)),
    Node(
        "optax.InjectStatefulHyperparamsState",
        counts=("count",),
        inner=("inner_state", "hyperparams_states"),
        other=("hyperparams",),
    ),
    Node("optax.InjectHyperparamsState", counts=("count",), inner=("inner_state",), other=("hyperparams",)),
    Node(
        "optax.MultiStepsState",
        counts=("gradient_step",),
        inner=("inner_opt_state",),
        pending=("mini_step",),
        other=("acc_grads", "skip_state"),
    ),
)


@dataclass(frozen=True)
class Variant:
    """An optimizer that the check knows by name.

    Attributes:
        form: PyTorch's class and the transform.
        options: passed to both.
        adaptive: as in `KnownOptimizer`.
    """

    form: Form
    options: dict[str, Any]
    adaptive: bool


VARIANTS = {
    name: Variant(form, dict(options), row.adaptive)
    for row in OPTIMIZERS
    for form in row.forms
    for name, options in form.variants.items()
}
CLASSES = tuple(name for row in OPTIMIZERS for name in row.classes)
OPTAX = tuple(name for row in OPTIMIZERS for name in row.optax)


def having(*options: str) -> tuple[str, ...]:
    """Return the classes of PyTorch that have these options."""
    return tuple(name for row in OPTIMIZERS if row.options >= set(options) for name in row.classes)


def class_of(optimizer: Any) -> str | None:
    """Return the known class of a live PyTorch optimizer, or the known base class that computes the same."""
    optim, kind = sys.modules["torch"].optim, type(optimizer)
    known = {getattr(optim, name): name for name in CLASSES}
    for cls in kind.__mro__:  # from the subclass up: AdamW is an Adam
        if cls in known and all(_same(kind, cls, method) for method in ("step", "_init_group")):
            return known[cls]
    return None


def _same(kind: type, cls: type, method: str) -> bool:
    """Whether a class has another's method; PyTorch wraps `step` again in each class."""
    own, other = getattr(kind, method), getattr(cls, method)
    return own is other or inspect.unwrap(own) is inspect.unwrap(other)
