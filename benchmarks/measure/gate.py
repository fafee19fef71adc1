"""The gate: a subject may be timed only if it gives PyTorch's numbers, in exactly the configuration that is timed.

`expected.py` says what the numbers must be and how far off they may be. `parity check` in float64 finds what such a
bound cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.subjects.case import Numbers
from parity.numerics.bounds import distance, norm
from ports.weights.layers.leaves import COUNTER

STATISTICS = ("running_mean", "running_var", COUNTER)


@dataclass(frozen=True)
class GateVerdict:
    """Whether a subject may be timed: its worst tensor, and how far that is off in units of its bound."""

    ok: bool
    worst: float
    tensor: str
    distance: float
    bound: float

    def __str__(self) -> str:
        sign = "within" if self.ok else "beyond"
        return f"{self.tensor}: {self.distance:.1e} off PyTorch in float64, {sign} its bound {self.bound:.1e}"


def judge(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bounds: Mapping[str, float]
) -> GateVerdict:
    """Compare a subject's numbers with those expected; distances are relative L2."""
    worst = GateVerdict(True, -1.0, "", 0.0, 0.0)
    for name, value in expected.items():
        # A result that is missing, or that should be zero throughout, cannot be compared: it is infinitely far off.
        size = norm(value)
        far = distance(found[name], value) / size if name in found and size else float("inf")
        bound = bounds[name]
        # Some results are exact in every working precision; then only the same number is right.
        times = far / bound if bound else (0.0 if far == 0 else float("inf"))
        # Written so that NaN counts as the worst, although no comparison finds it larger.
        if not times <= worst.worst:
            worst = GateVerdict(bool(times <= 1), times, name, far, bound)
    return worst


def parameter_change(after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> Numbers:
    """Return the change of all parameters, as one vector."""
    # The forward pass changes the statistics, not the optimizer.
    names = [name for name in before if not name.endswith(STATISTICS)]
    moved = [(after[name].astype(np.float64) - before[name]).ravel() for name in names]
    return {"parameters' change": np.concatenate(moved)}
