"""How much less precise than PyTorch a port may be in a working precision, and how often that limit is wrong.

The figures come from `python -m tests.meta.precision --store`, which writes `benchmarks/results/precision-limits.json`;
a test holds them against that file. The limit is twice as far from 1 as the largest ratio of the faithful runs that
were drawn to find it. Other faithful runs, drawn afterwards, say how often it is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The limits of one type.

    Attributes:
        less: the largest ratio of the port's error to PyTorch's.
        more: the smallest one; below it the port is more precise than PyTorch.
        runs: faithful runs that were drawn after the limits had been set.
        alarms: of them, those in which a place is outside of its limit.
        rate: the upper end of the 95 % interval of the rate of false alarms, for one network.
    """

    less: float
    more: float
    runs: int
    alarms: int
    rate: float

    def said(self, dtype: str) -> str:
        """Return what a reader is told of false alarms."""
        rate = f"{self.alarms} of {self.runs:,} faithful runs, below {self.rate:.2%} with 95 % confidence"
        return f"judged in {dtype}: at most {self.less:g} times PyTorch's rounding at each place; false alarms: {rate}"


LIMITS = {
    "float32": Limit(less=64.0, more=1 / 64, runs=0, alarms=0, rate=1.0),
    "bfloat16": Limit(less=1.15, more=1 / 1.15, runs=0, alarms=0, rate=1.0),
}

# What a reference that is exact at a place counts as: this part of one rounding of every number.
LEAST = 0.5


def allowed(limit: Limit, count: int) -> tuple[float, float]:
    """Return the smallest and the largest ratio at a place of so many numbers: few of them say little."""
    spread = 1 + FEW / count**0.5
    return limit.more / spread, limit.less * spread


# Of one number the ratio of two faithful errors may be anything; of n it spreads with one over the root of n.
FEW = 3.0
