"""Every known mistake that a finding can name, in one list: of weights, layers, between layers, losses, training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parity import between, loss_traps, training_traps, transfer, traps


@dataclass(frozen=True)
class Entry:
    """One known mistake, as it is listed.

    Attributes:
        family: `weight`, `layer`, `between`, `loss` or `training`: what is planted, and how.
        where: the layers or operations where it can be made.
    """

    name: str
    family: str
    where: str
    text: str
    mend: str


def entries() -> Iterator[Entry]:
    """All, in the order in which they are tried."""
    for trap in transfer.TRAPS:
        yield Entry(trap.name, "weight", f"weights of {', '.join(trap.kinds) or 'any layer'}", trap.text, trap.mend)
    for trap in traps.TRAPS:
        types = dict.fromkeys(cls.__name__.rstrip("123d") for cls in trap.layers)
        yield Entry(trap.name, "layer", ", ".join(types), trap.text, trap.mend)
    for operation in between.OPERATIONS:
        functions = dict.fromkeys(name.strip("_").rstrip("123d") for name in operation.functions)
        yield Entry(operation.name, "between", ", ".join(functions), operation.text, operation.mend)
    for operation in loss_traps.TRAPS:
        yield Entry(operation.name, "loss", ", ".join(operation.functions), operation.text, operation.mend)
    for trap in training_traps.TRAPS:
        yield Entry(trap.name, "training", trap.where.rpartition(".")[2], trap.text, trap.mend)
