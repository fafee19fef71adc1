"""How much less precise than PyTorch a port may be in a working precision, and how often that limit is wrong.

The figures come from `python -m tests.meta.precision --store`, which writes `benchmarks/results/precision-limits.json`;
a test holds them against that file. A limit is some times as far from 1 as the largest ratio of the faithful runs that
were drawn to find it. Other faithful runs, drawn afterwards, say how often it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# What is seen at a place: a layer's output, what is computed between layers, or the scores that a softmax gets. Scores
# have a limit of their own: a few of them are large, and queries that are scaled before their product round otherwise.
LAYER, BETWEEN, SCORES = "layer", "between", "scores"
KINDS = (LAYER, BETWEEN, SCORES)


@dataclass(frozen=True)
class Limit:
    """The limits of one type.

    Attributes:
        less: by kind of place the largest ratio of the port's error to PyTorch's.
        more: the smallest one; below it the port is more precise than PyTorch.
        runs: faithful runs that were drawn after the limits had been set.
        alarms: of them, those in which a port was called less precise.
        rate: the upper end of the 95 % interval of the rate of false alarms, for one network.
    """

    less: Mapping[str, float]
    more: Mapping[str, float]
    runs: int
    alarms: int
    rate: float

    def said(self, dtype: str) -> str:
        """Return what a reader is told of false alarms."""
        limits = ", ".join(f"{value:g} ({kind})" for kind, value in self.less.items())
        rate = f"{self.alarms} of {self.runs:,} faithful runs, below {self.rate:.2%} with 95 % confidence"
        return f"judged in {dtype}: PyTorch's rounding at each place times at most {limits}; false alarms: {rate}"


LIMITS = {
    "float32": Limit(
        {LAYER: 47.53, BETWEEN: 43.25, SCORES: 2},
        {LAYER: 0.1, BETWEEN: 0.5, SCORES: 0.3},
        runs=506,
        alarms=0,
        rate=0.0073,
    ),
    "bfloat16": Limit(
        {LAYER: 1.1, BETWEEN: 1.1, SCORES: 1.38},
        {LAYER: 0.91, BETWEEN: 0.91, SCORES: 0.72},
        runs=638,
        alarms=0,
        rate=0.0058,
    ),
}

# What a reference that is exact at a place counts as: this part of one rounding of every number.
LEAST = 0.5


# The ratio of two errors that are drawn apart, of n numbers each, has a standard deviation of 0.63 / √n: a rounding's
# square has one of 0.89 of its mean. So many times 1 / √n are more than four of them.
FEW = 3.0


# Standard deviations that are still chance, where slices of a tensor scatter.
DEVIATIONS = 3.0


def spread(count: float, scatter: float = 0.0) -> float:
    """Return the factor that chance may add to a ratio.

    Args:
        count: of numbers that round by themselves.
        scatter: the standard deviation of the ratio's logarithm, as slices of the tensors show it.
    """
    return max(1 + FEW / count**0.5, math.exp(DEVIATIONS * scatter))
