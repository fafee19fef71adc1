"""Every known mistake that a finding can name, in one list: those of weights, of layers, and between layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parity import between, sources, traps, weight_traps


@dataclass(frozen=True)
class Entry:
    """One known mistake, as it is listed.

    Attributes:
        family: `weight`, `layer` or `between`: what is planted, and how.
        where: the layers or operations where it can be made.
        source: a page of a framework's documentation, a paper, or a measured trap of this project.
    """

    name: str
    family: str
    where: str
    text: str
    mend: str

    @property
    def source(self) -> str:
        return sources.of(self.name)


def entries() -> Iterator[Entry]:
    """All, in the order in which they are tried."""
    for trap in (*weight_traps.TRAPS, *weight_traps.TOGETHER):
        yield Entry(trap.name, "weight", f"weights of {', '.join(trap.kinds) or 'any layer'}", trap.text, trap.mend)
    for trap in traps.TRAPS:
        types = dict.fromkeys(cls.__name__.rstrip("123d") for cls in trap.layers)
        yield Entry(trap.name, "layer", ", ".join(types), trap.text, trap.mend)
    for operation in between.OPERATIONS:
        functions = dict.fromkeys(name.strip("_").rstrip("123d") for name in operation.functions)
        yield Entry(operation.name, "between", ", ".join(functions), operation.text, operation.mend)
