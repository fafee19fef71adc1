"""How much less precise than PyTorch a port may be in a working precision, and how often that limit is wrong.

The figures come from `python -m tests.meta.precision --store`, which writes `benchmarks/results/precision-limits.json`;
a test compares them with that file. A limit is several times as far from 1 as the largest ratio in the faithful runs
that were drawn to find it. Other faithful runs, drawn afterwards, say how often it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# The value at a place: a layer's output, a value computed between layers, or the scores that a softmax gets. Scores
# have a limit of their own: a few of them are large, and queries that are scaled before their product round
# differently.
LAYER, BETWEEN, SCORES = "layer", "between", "scores"
KINDS = (LAYER, BETWEEN, SCORES)


@dataclass(frozen=True)
class Limit:
    """The limits of one type.

    Attributes:
        less: by kind of place, the largest allowed ratio of the port's error to PyTorch's.
        more: the smallest ratio; below it the port is more precise than PyTorch.
        runs: faithful runs that were drawn after the limits had been set.
        alarms: how many of them called a port less precise.
        rate: the upper end of the 95 % interval of the rate of false alarms, for one network.
    """

    less: Mapping[str, float]
    more: Mapping[str, float]
    runs: int
    alarms: int
    rate: float

    def said(self, dtype: str) -> str:
        """Return the text about false alarms."""
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

# If a reference is exact at a place, its error counts as this fraction of one rounding of every number.
LEAST = 0.5


# The ratio of two independent errors, of n numbers each, has a standard deviation of 0.63 / √n: a rounding's
# square has one of 0.89 of its mean. This many times 1 / √n is more than four such deviations.
FEW = 3.0


# Up to this many standard deviations are chance, if the slices of a tensor scatter.
DEVIATIONS = 3.0


def spread(count: float, scatter: float = 0.0) -> float:
    """Return the factor by which chance may increase a ratio.

    Args:
        count: how many numbers round independently.
        scatter: the standard deviation of the ratio's logarithm, as slices of the tensors show it.
    """
    return max(1 + FEW / count**0.5, math.exp(DEVIATIONS * scatter))
