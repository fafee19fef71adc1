"""Every known mistake that a finding can name, in one list: of weights, layers, between layers, losses, training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parity.diagnosis import between
from parity.traps import layers as traps
from parity.traps import losses as loss_traps
from parity.traps import sources
from parity.traps import training as training_traps
from parity.traps import weights as weight_traps


@dataclass(frozen=True)
class Entry:
    """One known mistake, as it is listed.

    Attributes:
        family: `weight`, `layer`, `between`, `loss` or `training`: what is planted, and how.
        where: the layers or operations where it can be made.
        source: pages of the frameworks' documentation, by the names of what they describe, and papers.
    """

    name: str
    family: str
    where: str
    text: str
    mend: str
    source: str


def entries() -> Iterator[Entry]:
    """All, in the order in which they are tried."""
    for trap in (*weight_traps.TRAPS, *weight_traps.TOGETHER):
        yield _entry("weight", trap, f"weights of {', '.join(trap.kinds) or 'any layer'}")
    for trap in traps.TRAPS:
        yield _entry("layer", trap, ", ".join(dict.fromkeys(cls.__name__.rstrip("123d") for cls in trap.layers)))
    for family, table in (("between", between.OPERATIONS), ("loss", loss_traps.TRAPS)):
        for operation in table:
            names = dict.fromkeys(name.strip("_").rstrip("123d") for name in operation.functions)
            yield _entry(family, operation, ", ".join(names))
    for trap in training_traps.TRAPS:
        yield _entry("training", trap, trap.where.removeprefix("torch.optim."))


def _entry(family: str, trap: Any, where: str) -> Entry:
    source = getattr(trap, "source", None) or sources.of(trap.name)
    return Entry(trap.name, family, where, trap.text, trap.mend, source)
