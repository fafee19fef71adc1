"""The records: a family as two classes of one project, and what the check must say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

# What a check comes to; `parity.check` gives the first three by its exit code, and raises where it refuses.
PARITY, MISMATCH, UNDECIDED, REFUSED = "parity", "mismatch", "undecided", "refused"


@dataclass(frozen=True)
class Difference:
    """One real difference between the two classes.

    Attributes:
        text: what differs, in one sentence.
        pytorch: what PyTorch's class does, and where: file, line and function in the package.
        flax: the same of the Flax class.
        layers: a pattern of the layers, by their PyTorch names, at which the check tells it; empty where it is advice.
        trap: the name of the known mistake that the check calls it; None where it has no name.
        advice: a pattern of the advice that tells of it; empty where it is a finding.
    """

    text: str
    pytorch: str
    flax: str
    layers: str = ""
    trap: str | None = None
    advice: str = ""

    def explains(self, layers: Sequence[str], trap: str | None) -> bool:
        """Return whether a finding at these layers, under this name, is this difference."""
        return bool(self.layers) and trap == self.trap and all(fnmatchcase(layer, self.layers) for layer in layers)

    def advises(self, line: str) -> bool:
        """Return whether a line of advice is this difference."""
        return bool(self.advice) and fnmatchcase(line, f"*{self.advice}*")


class Row(Protocol):
    """A row of any kind: what the check must say of its pair."""

    @property
    def name(self) -> str: ...
    @property
    def differences(self) -> tuple[Difference, ...]: ...
    @property
    def defect(self) -> Defect | None: ...
    @property
    def verdict(self) -> str: ...


@dataclass(frozen=True)
class Defect:
    """What the check says wrongly today.

    Attributes:
        verdict: the wrong one.
        cause: why, in one sentence.
    """

    verdict: str
    cause: str


@dataclass(frozen=True)
class Pair:
    """A live pair.

    Attributes:
        reference: the PyTorch model.
        port: Linen's `(module, variables)`, with PyTorch's weights.
    """

    reference: Any
    port: tuple[Any, Mapping[str, Any]]


@dataclass(frozen=True)
class Twin:
    """A family that has a PyTorch and a Flax class.

    Attributes:
        name: of the row.
        package: the project that published both.
        model: the PyTorch class; `Flax` before it gives the other.
        config: makes the small configuration, from the package.
        inputs: makes the arrays that both are called with.
        build: makes the pair, from this row and its configuration.
        shape: the input shape that the Flax class initialises with; None for its default.
        added: keywords that the Flax class alone must be given.
        ordered: whether the inputs go by their order, and not by name.
        layouts: options of the check, by the name of an input.
        differences: the real ones. The check must tell each of them, and nothing else.
        defect: what the check says wrongly today; None where it is right.
        fast: whether the row is part of the quick selection.
    """

    name: str
    package: str
    model: str
    config: Callable[[Any], Any]
    inputs: Callable[[], Mapping[str, np.ndarray]]
    build: Callable[[Twin, Any], Pair]
    shape: Any = None
    added: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = False
    layouts: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    defect: Defect | None = None
    fast: bool = False

    @property
    def verdict(self) -> str:
        """The right verdict: a difference that is a finding is a mismatch, one that is advice is not."""
        return MISMATCH if any(difference.layers for difference in self.differences) else PARITY
