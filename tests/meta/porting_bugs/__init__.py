"""Porting bugs of real projects, replayed: each as a PyTorch model and a Flax port in a right and in a wrong version.

Every module here with a `BUG` is one bug; its name is the bug's. `running.py` asks the check about both versions,
`rivals.py` asks the rules that people use today, and `table.py` writes `docs/porting-bugs.md`. The other modules are
`inputs.py`, which draws inputs, `surroundings.py` and `images.py`, what stands around many of the bugs, and
`__main__.py`, the command.

To add a bug, write its module. Write `named` before the bug is run for the first time, and leave it as it is.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ports.errors import UserError

# Modules of this package that hold no bug.
HARNESS = ("__main__", "images", "inputs", "rivals", "running", "skeletons", "surroundings", "table")

KINDS = (
    "rotary",
    "attention",
    "norm",
    "gated unit",
    "experts",
    "embedding",
    "vision",
    "convolution",
    "batch norm",
    "recurrent",
    "training",
    "configuration",
)

# A commit, or an issue or pull request, of a project on GitHub.
SOURCE = re.compile(r"[\w.-]+/[\w.-]+(#\d+|@[0-9a-f]{7,40})")


@dataclass(frozen=True)
class Bug:
    """One bug of a real project.

    Attributes:
        source: where the bug was found or mended: `owner/project@commit` or `owner/project#number`.
        what: what the wrong version does, in one sentence.
        torch: makes the reference.
        port: makes the port, an `nnx.Module` or a `linen.Module`; its argument says whether it has the bug.
        inputs: makes the arrays that both are called with, in PyTorch's layout.
        layer: where the bug is, by PyTorch's name of a block or a leaf; several where they are equally right.
        named: a pattern that the first finding (its trap and its text) must match to have named the bug.
        kind: one of `KINDS`.
        blind: whether its writer knew nothing of the traps.
        trap_added: whether the check got a trap, or another change to try, because it did not name this bug when it was
            first run.
        options: of `parity.check`, such as an optimizer or a loss.
        mistaken: options of the wrong version in place of these, where the bug is in the loss or in the optimizer.

    Raises:
        ValueError: a kind, a source or a pattern that is not valid.
    """

    source: str
    what: str
    torch: Callable[[], nn.Module]
    port: Callable[[bool], Any]
    inputs: Callable[[], tuple[np.ndarray, ...]]
    layer: str | tuple[str, ...]
    named: str
    kind: str
    blind: bool = False
    trap_added: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    mistaken: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not SOURCE.fullmatch(self.source):
            raise ValueError(f"source: got {self.source!r}, expected owner/project#number or owner/project@commit")
        re.compile(self.named)

    @property
    def layers(self) -> tuple[str, ...]:
        """Every place that is right."""
        return (self.layer,) if isinstance(self.layer, str) else self.layer


def names() -> list[str]:
    """Return the names of all bugs, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HARNESS)


def load(name: str) -> Bug:
    """Import a bug's module and return its record."""
    return importlib.import_module(f"{__name__}.{name}").BUG


def chosen(some: Sequence[str] = ()) -> dict[str, Bug]:
    """Return bugs by their names; all of them where no names are given.

    Raises:
        UserError: no bug has such a name.
    """
    known = names()
    for name in some:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise UserError(f"got {name!r}, expected the name of a bug; {' '.join(near)} is nearest")
    return {name: load(name) for name in some or known}
