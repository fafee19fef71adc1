"""The exact interval of a rate (Clopper and Pearson 1934)."""

from __future__ import annotations

CONFIDENCE = 0.95


def exact(count: int, total: int) -> tuple[float, float]:
    """Return the two-sided 95 % interval of a rate, from a number of events in a number of tries.

    Raises:
        ValueError: more events than tries, or no try.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"got {count} of {total}, expected 0 to the number of tries, of at least one")
    from scipy.special import betaincinv  # quick to load, and an import of scipy is not

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def said(count: int, total: int) -> str:
    """Return the interval in per cent, for a sentence."""
    low, high = exact(count, total)
    return f"95 % interval {_percent(low)} to {_percent(high)} %"


def _percent(rate: float) -> str:
    """Return the distance of the rate from 0 %, or from 100 %, with two digits."""
    lacks = float(f"{100 * min(rate, 1 - rate):.2g}")
    return f"{lacks if rate < 0.5 else 100 - lacks:.10g}"
