"""The memory of a GPU, which programs share: an estimate, until a process reports how much it took."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.plan import Program
from benchmarks.measure.references import References
from benchmarks.subjects import memory_estimates
from benchmarks.subjects.roster import SUBJECTS


class DeviceMemory:
    """The memory that programs and the computing of a reference share.

    Args:
        total: bytes; None if they are not counted (CPU).
    """

    def __init__(self, total: float | None, references: References) -> None:
        self.total, self.references = total, references
        # By program: the measured memory, at most and at rest.
        self.told: dict[tuple[str, str], tuple[float, float]] = {}

    def need(self, program: Program) -> tuple[float, float]:
        """Return the bytes that a program takes at most, and while it waits."""
        setting = program.setting
        estimate = memory_estimates.need(setting), memory_estimates.rest(setting, SUBJECTS[program.subject])
        return self.told.get(program.key, estimate)

    def has(self, more: float, programs: Sequence[Program], at_rest: bool = False) -> bool:
        """Return whether this many bytes are free, besides the memory of these programs and the reference.

        Args:
            at_rest: count programs that compile with the memory that they will keep at rest.
        """
        using = [p for p in programs if p.uses_memory]
        if self.total is None or not (using or self.references.is_busy):
            return True  # a program that does not fit into an empty device never fits: let it try
        resting = [p for p in using if at_rest or p.state == "ready"]
        growing = max((self.need(p)[0] - self.need(p)[1] for p in resting), default=0.0)  # one of them is timed
        taken = growing + sum(self.need(p)[p in resting] for p in using)
        computed = self.references.takes if self.references.is_busy and not at_rest else 0.0
        return taken + computed + more <= self.total
