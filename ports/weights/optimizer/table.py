"""The optimizers whose states move between the frameworks, one row each, for live optimizers and for files.

`OPTIMIZERS` holds what PyTorch keeps for a parameter, `NODES` where optax keeps the same numbers. A class that no row
names is refused: RAdam, NAdam, AdaBelief and others have tensors of the same names that mean something else.

optax's RMSprop keeps its momentum times the learning rate, and its AMSGrad the largest corrected square; PyTorch keeps
neither, so these two have no row. A file does not name optax's class: its fields decide, and `count, mu, nu` are read
as Adam's, although AdaBelief, RAdam and Yogi have the same.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ports.weights.form.torch_form import WeightsError, describe

STEP = "step"
LARGEST = 2**63 - 1
WEIGHTS_ONLY = "--weights-only leaves the optimizer out"


@dataclass(frozen=True)
class KnownOptimizer:
    """One row.

    Attributes:
        classes: of `torch.optim`; their states mean the same.
        transforms: of `ports.optim`, which compute the same.
        tensors: what it keeps for a parameter, and the option that switches it on (None: always).
        options: the keys of a group that together only this optimizer has.
        counts: whether it counts its steps.
        eager: whether PyTorch makes the state at once, not with the first gradient.
    """

    classes: tuple[str, ...]
    transforms: tuple[str, ...]
    tensors: Mapping[str, str | None]
    options: frozenset[str]
    counts: bool = True
    eager: bool = False

    @property
    def name(self) -> str:
        return self.classes[0]

    @property
    def always(self) -> set[str]:
        """The tensors that every parameter has."""
        return {name for name, option in self.tensors.items() if option is None} or set(self.tensors)

    def expected(self, group: Mapping[str, Any]) -> set[str]:
        """The tensors of a parameter in a group with these options."""
        return {name for name, option in self.tensors.items() if option is None or _is_on(option, group.get(option))}


OPTIMIZERS = (
    KnownOptimizer(
        ("Adam", "AdamW"),
        ("adam", "adamw"),
        {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
        frozenset({"betas", "amsgrad"}),
    ),
    KnownOptimizer(
        ("SGD",),
        ("sgd",),
        {"momentum_buffer": "momentum"},
        frozenset({"momentum", "dampening", "nesterov"}),
        counts=False,
    ),
    KnownOptimizer(
        ("RMSprop",),
        ("rmsprop",),
        {"square_avg": None, "momentum_buffer": "momentum", "grad_avg": "centered"},
        frozenset({"alpha", "centered"}),
    ),
    KnownOptimizer(
        ("Adagrad",),
        ("adagrad",),
        {"sum": None},
        frozenset({"lr_decay", "initial_accumulator_value"}),
        eager=True,
    ),
)
KNOWN = ", ".join(name for row in OPTIMIZERS for name in row.classes)

# Options that another optimizer has; some of them have all options of a row above besides.
FOREIGN = {
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


@dataclass(frozen=True)
class Node:
    """A NamedTuple in a state of optax.

    Attributes:
        name: top package and class.
        tensors: fields that hold a tree like the parameters, and PyTorch's name for it (`*`: a dict by such names).
        counts: fields that hold the number of steps done.
        inner: fields that hold further states.
        pending: fields that are 0 unless gradients wait for their step.
        other: fields that stay as they are.
    """

    name: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def trees(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The trees by PyTorch's names, of the fields' values."""
        trees: dict[str, Any] = {}
        for name, slot in self.tensors.items():
            if slot != "*":
                trees[slot] = values[name]
            elif isinstance(named := values.get(name), Mapping):
                trees |= named
            elif named is not None:
                raise WeightsError(f"optimizer: {name}: got {shown(named)}, expected a table; {WEIGHTS_ONLY}")
        return trees

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether a table in a file has its fields; a format may drop those that are empty."""
        needed = {*self.counts, *self.pending, *self.inner[:1], *(f for f, slot in self.tensors.items() if slot != "*")}
        return needed <= set(keys) <= {*self.tensors, *self.counts, *self.inner, *self.pending, *self.other}


NODES = (
    Node("ports.State", {"tensors": "*"}, counts=("count",)),
    Node("ports.Accumulated", inner=("inner",), pending=("count",), other=("sums",)),
    Node("optax.ScaleByAdamState", {"mu": "exp_avg", "nu": "exp_avg_sq"}, counts=("count",)),
    Node("optax.TraceState", {"trace": "momentum_buffer"}),
    Node("optax.ScaleByRmsState", {"nu": "square_avg"}),
    Node("optax.ScaleByRStdDevState", {"mu": "grad_avg", "nu": "square_avg"}),
    Node("optax.ScaleByRssState", {"sum_of_squares": "sum"}),
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
BY_CLASS = {row.name: row for row in NODES}


def node_of(state: Any) -> Node | None:
    """The row of a live state's class."""
    package = type(state).__module__.partition(".")[0]
    return BY_CLASS.get(f"{package}.{type(state).__name__}")


def of_torch(optimizer: Any) -> KnownOptimizer:
    """The row of a live PyTorch optimizer: of its class, or of a subclass that computes the same.

    Raises:
        WeightsError: another class.
    """
    optim, kind = sys.modules["torch"].optim, type(optimizer)
    for row in OPTIMIZERS:
        for cls in (getattr(optim, name) for name in row.classes):
            if issubclass(kind, cls) and all(_same(kind, cls, name) for name in ("step", "_init_group")):
                return row
    got = f"{kind.__module__}.{kind.__qualname__}"
    raise WeightsError(f"optimizer: got {got}, expected one of torch.optim's {KNOWN}, whose states are known")


def _same(kind: type, cls: type, method: str) -> bool:
    """Whether a class has another's method; PyTorch wraps `step` anew in each class."""
    own, other = getattr(kind, method), getattr(cls, method)
    return own is other or inspect.unwrap(own) is inspect.unwrap(other)


def of_groups(groups: Iterable[Mapping[str, Any]], slots: Iterable[str]) -> KnownOptimizer | None:
    """The row of a state in a file, by the options of its groups and the names of its tensors.

    Returns:
        None where there are neither options nor tensors.

    Raises:
        WeightsError: no row fits, or several do.
    """
    keys = [set(group) - {"params", "param_names"} for group in groups]
    common, slots = set.intersection(*keys) if keys else set(), set(slots)
    if not any(keys) and not slots:
        return None
    rows = [row for row in OPTIMIZERS if slots <= set(row.tensors) and (not slots or row.always <= slots)]
    if any(keys):
        rows = [row for row in rows if row.options <= common and not FOREIGN.keys() & common]
    if len(rows) == 1:
        return rows[0]
    guess = next((f", which are {name}'s" for key, name in FOREIGN.items() if key in common), "")
    raise WeightsError(
        f"optimizer: got the options {describe(sorted(map(str, common)), 12) or '(not known)'} and the tensors "
        f"{describe(sorted(map(str, slots))) or '(no tensors)'}{guess}; expected the state of {KNOWN}; {WEIGHTS_ONLY}"
    )


def _is_on(option: str, value: Any) -> bool:
    if value is None or isinstance(value, bool | int | float):
        return bool(value)
    if hasattr(value, "dtype") and len(value.shape) == 0:
        return bool(value)
    raise WeightsError(f"optimizer: option {option}: got {type(value).__name__}, expected a number or true or false")


def whole_number(value: Any, what: str) -> int:
    """A number of steps: one number from 0 to int64's largest, without a fraction.

    Raises:
        WeightsError: anything else, with `what` in front.
    """
    if (count := exact(value)) is None or not 0 <= count <= LARGEST:
        raise WeightsError(f"{what}: got {shown(value)}, expected one whole number from 0 to {LARGEST:,}")
    return count


def exact(value: Any) -> int | None:
    """The integer that a number is, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) and not hasattr(value, "dtype"):
        return None
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iufV" or array.dtype.names:
        return None
    if array.dtype.kind in "iu":
        return int(array)
    try:
        number = float(array)
    except (TypeError, ValueError):  # raw bytes
        return None
    return int(number) if number.is_integer() else None


def shown(value: Any) -> str:
    """A value in a message: short, on one line, without a character that a terminal obeys."""
    if isinstance(value, str | int | float | bool | type(None)):
        return ascii(value if not isinstance(value, int) or abs(value) < 10**30 else float("inf"))[:40]
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        number = f" {ascii(np.asarray(value)[()])[:40]}" if len(value.shape) == 0 else ""
        return f"an array {tuple(value.shape)} of {value.dtype}{number}"
    return type(value).__name__


def problems(
    tensors: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, set[str]],
    started: bool,
    stateless: Iterable[str],
    keeper: str,
    surplus: bool = True,
) -> list[str]:
    """What is wrong with a state: a line for each kind of tensor.

    Args:
        tensors: by their name in the state, then by parameter.
        expected: the tensors that the target keeps for each of its parameters.
        started: whether steps were done; before the first a state may be empty.
        stateless: parameters that never got a gradient; they may lack all of their tensors.
        keeper: the target in words.
        surplus: whether a tensor that the options switch off is wrong too; PyTorch keeps one where they changed.
    """
    found: list[str] = []
    kept = set().union(*expected.values()) if expected else set()
    for slot, arrays in tensors.items():
        if surplus and slot not in kept:
            found.append(f"{slot}: {keeper} with these options keeps no such tensor")
            continue
        if strange := [name for name in arrays if name not in expected]:
            found.append(f"{slot}/{describe(strange)}: {keeper} has no such parameter")
        more = [name for name in arrays if slot not in expected.get(name, {slot})] if surplus else []
        if more:
            found.append(f"{slot}/{describe(more)}: {keeper} with these options keeps no such tensor")
    own = {name: {slot for slot, arrays in tensors.items() if name in arrays} for name in expected}
    excused = {name for name in stateless if not own.get(name)}
    lacking = [n for n, slots in expected.items() if slots - own[n] and n not in excused and (own[n] or started)]
    for slot in sorted({slot for name in lacking for slot in expected[name] - own[name]}):
        names = [name for name in lacking if slot in expected[name] - own[name]]
        found.append(f"{slot}: missing from the state" + (f" for {describe(names)}" if slot in tensors else ""))
    return found
