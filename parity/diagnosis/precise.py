"""Judges whether a port is as precise as PyTorch in a working precision: compares every place with its limit.

A port that rounds more than PyTorch somewhere is less precise than its reference, which float64 cannot see: a softmax
without float32, a cast in another order, a sum or a table in bfloat16. The finding names the innermost module whose
code rounds there. A port that rounds less computes with more digits than PyTorch: that is advice, because no result
suffers.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from parity.diagnosis import rounding
from parity.diagnosis.rounding import Errors
from parity.numerics.pins import CAST, Pin
from parity.reports.report import Finding, Row
from parity.running.forced_values import SOFTMAX, Key
from parity.running.subject import Subject
from parity.running.taps import layer_of
from parity.verdict.limits import BETWEEN, KINDS, LAYER, LEAST, LIMITS, SCORES, spread

WHOLE = "(the network)"

# From this ratio on the port computes as a type with eight digits less would.
NARROWER = 2.0**8


@dataclass(frozen=True)
class Place:
    """One place of a port in a type.

    Attributes:
        within: the module whose code computes the value there.
        ratio: the port's error divided by PyTorch's, for the form of PyTorch's functions that rounds more.
        over: the same for the form that rounds less.
        port, reference: their errors, in units of one rounding of every number, in PyTorch's type.
        size: the port's error relative to the exact values.
        held: PyTorch's type of the value there, whose limits count.
        spread, over_spread: how much chance may add to either ratio.
    """

    key: Key
    dtype: str
    within: str
    ratio: float
    over: float
    port: float
    reference: float
    size: float
    held: str
    spread: float
    over_spread: float

    @property
    def is_softmax(self) -> bool:
        """Whether a softmax is called there."""
        return layer_of(self.key[1]) == SOFTMAX

    @property
    def kind(self) -> str:
        """What is seen there."""
        if self.is_softmax:
            return SCORES if self.key[0] == "enter" else LAYER
        return LAYER if self.key[0] == "leave" else BETWEEN

    @property
    def highest(self) -> float:
        """The largest ratio that a right port may have."""
        return LIMITS[self.held].less[self.kind] * self.spread

    @property
    def lowest(self) -> float:
        """The smallest one."""
        return LIMITS[self.held].more[self.kind] / self.over_spread

    @property
    def less(self) -> bool:
        """Whether the port is less precise than PyTorch."""
        return not self.ratio <= self.highest

    @property
    def more(self) -> bool:
        """Whether it is more precise."""
        return self.over < self.lowest


@dataclass(frozen=True)
class Judged:
    """The results of ports in working precision.

    Attributes:
        undecided: why the check cannot tell: a side does not run in a type.
    """

    rows: tuple[Row, ...] = ()
    findings: tuple[Finding, ...] = ()
    advice: tuple[str, ...] = ()
    undecided: str | None = None

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.rows + other.rows,
            self.findings + other.findings,
            self.advice + other.advice,
            self.undecided or other.undecided,
        )


def judged(
    subject: Subject, port: str, dtype: str, pins: Iterable[Pin] = (), products: Callable[[], Any] = nullcontext
) -> Judged:
    """Judge a port in a type.

    Args:
        pins: where PyTorch's code fixes a type.
        products: sets JAX's precision of products.
    """
    found = list(places(rounding.measure(subject, port, dtype, products), dtype))
    less, more = (_first([place for place in found if getattr(place, kind)], found) for kind in ("less", "more"))
    told = {p.layer: p for p in sorted(pins, reverse=True) if p.kind == CAST and p.side == "pytorch"}
    findings = tuple(_finding(port, group, told) for group in _groups(less))
    advice = tuple(f"{port}: {_described(group, more=True)}{_also(group)}" for group in _groups(more))
    return Judged(tuple(_rows(port, dtype, found)), findings, advice)


def _first(outside: Sequence[Place], found: Sequence[Place]) -> list[Place]:
    """Return the places outside of their limits, except the one after such a softmax: its output is not forced."""
    behind = [after for before, after in itertools.pairwise(found) if before in outside and before.is_softmax]
    return [place for place in outside if place not in behind]


def places(errors: dict[Key, Errors], dtype: str) -> Iterable[Place]:
    """Return the places where a rounding can be seen, with their limits."""
    for key, error in rounding.places(errors):
        yield place_of(key, error, dtype)


def place_of(key: Key, error: Errors, dtype: str) -> Place:
    """Return one place."""
    least = LEAST**2 * error.unit
    high, low = max(*error.forms, least), min(error.forms)
    most, fewest = error.forms.index(max(error.forms)), error.forms.index(low)
    over = math.sqrt(error.port / low) if low >= least else 1.0
    return Place(
        key,
        dtype,
        error.within,
        math.sqrt(error.port / high),
        over,
        math.sqrt(error.port / error.unit),
        math.sqrt(max(error.forms) / error.unit),
        math.sqrt(error.port / error.size) if error.size else math.inf,
        error.held if error.held in LIMITS else dtype,
        spread(error.count, error.scatter(most)),
        spread(error.count, error.scatter(fewest)),
    )


def _rows(port: str, dtype: str, found: Sequence[Place]) -> Iterable[Row]:
    """Return a row for each kind of place: the worst one."""
    for kind in KINDS:
        if seen := [place for place in found if place.kind == kind]:
            worst = max(seen, key=lambda place: place.ratio / place.highest)
            bound = worst.size * worst.highest / worst.ratio if worst.ratio else 0.0
            yield Row(port, f"precision.{kind}", _named(worst), worst.size, bound, not any(p.less for p in seen), dtype)


def _named(place: Place) -> str:
    """Return the location of a place, in the words of a table."""
    return f"{_layer(place)} {SOFTMAX}" if place.is_softmax else place.key[1]


def _groups(found: Sequence[Place]) -> list[list[Place]]:
    """Group places of the same kind: those of numbered layers with the same name in one module."""
    groups: dict[object, list[Place]] = {}
    for place in found:
        side, call = place.key
        call = SOFTMAX if place.is_softmax else re.sub(r"\d+", "*", call)
        groups.setdefault((side, call, re.sub(r"\d+", "*", place.within)), []).append(place)
    return list(groups.values())


def _layer(place: Place) -> str:
    return place.within or WHOLE


def _finding(port: str, group: Sequence[Place], pins: dict[str, Pin]) -> Finding:
    place = group[0]
    also = tuple(dict.fromkeys(_layer(p) for p in group[1:] if _layer(p) != _layer(place)))
    pin = pins.get(place.within)
    said = f"; PyTorch's code has {pin.dtype} there ({pin.operation} at {pin.place})" if pin else ""
    text = f"{_described(group)}{said}; {_mend(place)}"
    return Finding(port, _layer(place), None, text, also, place.size)


def _described(group: Sequence[Place], more: bool = False) -> str:
    place = group[0]
    side, call = place.key
    seen = {"leave": "its output", "end": f"the output {call}"}.get(side, f"what it hands to {call}")
    if place.is_softmax:
        seen = "its softmax" if side == "leave" else "the scores of its softmax"
    what = "more" if more else "less"
    limit = f"at least {place.lowest:.2g}" if more else f"at most {place.highest:.3g}"
    times = place.over if more else place.ratio
    where = f"{_layer(place)}: " if more else ""
    return (
        f"{where}{what} precise than PyTorch in {place.dtype}: {seen} is off by {place.port:.2g} roundings, PyTorch's "
        f"by {place.reference:.2g}, {times:.3g} times as much ({limit} is rounding)"
    )


def _mend(place: Place) -> str:
    if place.ratio >= NARROWER:
        return "a part there computes in a narrower type: look for a dtype, a cast or a table in it"
    return "compute there in the type that PyTorch's code has, and cast where it casts"


def _also(group: Sequence[Place]) -> str:
    more = dict.fromkeys(_layer(place) for place in group[1:] if _layer(place) != _layer(group[0]))
    return f" (also at {len(more)} more: {', '.join(list(more)[:3])}{' …' if len(more) > 3 else ''})" if more else ""
