"""The drawing of a network's depth: relative distance and bound of every layer, as numbers for an SVG template.

A panel is one quantity of one port on a logarithmic scale. Forward quantities read from left to right; gradients keep
the order of the layers and read from right to left, as the backward pass goes. Values that a logarithmic scale cannot
show have a line of their own: zero below the scale, distances that are not finite above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from parity.numerics.quantities import QUANTITIES
from parity.reports.report import Finding, Model, Point

# In units of the view box, which are pixels at a width of 960: the plot, what a line of text takes, and a letter.
WIDTH, PLOT, LEFT, RIGHT = 960, 150, 72, 14
LINE, LETTER = 18, 7.5
# Distances below this count as zero: one unit in the last place is 2.2e-16.
SMALLEST = 1e-17


@dataclass(frozen=True)
class Mark:
    """One layer.

    Attributes:
        bound: the height of its bound.
        shape: `dot` within the bound, `out` beyond it, `lost` if the distance is not finite.
    """

    x: float
    y: float
    bound: float
    shape: str
    text: str


@dataclass(frozen=True)
class Label:
    """A text at a place; `anchor` is SVG's."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Panel:
    """One quantity of one port, layer by layer.

    Attributes:
        backward: whether it reads from right to left.
        step: the width of a layer.
        limit: the bound's line, from left to right.
        ticks: the scale.
        groups: names of the parts of the network, below their layers; `edges` are the lines between them.
        flags: the findings by their numbers, above their layers.
        first: names the first layer beyond its bound, above `pointer`, its mark.
        summary: one line for readers who cannot see the drawing.
    """

    quantity: str
    about: str
    backward: bool
    height: float
    top: float
    bottom: float
    step: float
    marks: Sequence[Mark]
    limit: str
    ticks: Sequence[Label]
    groups: Sequence[Label]
    edges: Sequence[float]
    flags: Sequence[Label]
    first: Label | None
    pointer: Mark | None
    outside: int
    summary: str


@dataclass(frozen=True)
class Scale:
    """Powers of ten from `low` to `high`, with a line for zero below and one for what is not finite above."""

    low: int
    high: int
    zero: bool
    infinite: bool

    @classmethod
    def of(cls, points: Sequence[Point]) -> Scale:
        distances = [p.distance for p in points]
        values = [v for p in points for v in (p.distance, p.bound) if math.isfinite(v) and v > SMALLEST]
        low = math.floor(math.log10(min(values, default=1e-16)))
        high = max(math.ceil(math.log10(max(values, default=1e-15))), low + 1)
        return cls(low, high, any(d <= SMALLEST for d in distances), not all(map(math.isfinite, distances)))

    def height(self, value: float, top: float) -> float:
        """The position of a value in a plot that begins at `top`."""
        if not math.isfinite(value):
            return top
        upper, lower = top + LINE * self.infinite, top + PLOT - LINE * self.zero
        if value <= SMALLEST:
            return top + PLOT
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return round(lower - min(max(part, 0.0), 1.0) * (lower - upper), 1)

    def ticks(self, top: float) -> list[Label]:
        every = max(1, math.ceil((self.high - self.low) / 6))
        found = {f"1e{power}": 10.0**power for power in range(self.low, self.high + 1, every)}
        found |= {"0": 0.0} if self.zero else {}
        found |= {"not finite": math.inf} if self.infinite else {}
        return [Label(LEFT - 6, self.height(value, top), text, "end") for text, value in found.items()]


def number(value: float) -> str:
    """`1.2e-15`; words where there is no number."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    return f"{value:.1e}" if value else "0"


def drawings(model: Model) -> list[tuple[str, list[Panel]]]:
    """One panel per port and quantity; all panels of a model share one scale."""
    points = [p for found in model.profile.values() for row in found.values() for p in row]
    if not points:
        return []
    scale = Scale.of(points)
    numbered = [
        (i, replace(finding, layer=layer))
        for i, finding in enumerate(model.findings, 1)
        for layer in (finding.layer, *finding.also)
    ]
    return [
        (
            port,
            [_panel(q, row, scale, [(i, f) for i, f in numbered if f.port == port]) for q, row in found.items() if row],
        )
        for port, found in model.profile.items()
    ]


def _panel(quantity: str, points: Sequence[Point], scale: Scale, findings: Sequence[tuple[int, Finding]]) -> Panel:
    step = (WIDTH - LEFT - RIGHT) / len(points)
    centres = [LEFT + (i + 0.5) * step for i in range(len(points))]
    flags, lanes = _flags(points, centres, findings)
    outside = [i for i, p in enumerate(points) if not p.ok]
    top = 8.0 + LINE * (lanes + bool(outside))
    marks = [
        Mark(round(x, 1), scale.height(p.distance, top), scale.height(p.bound, top), _shape(p), _said(p))
        for x, p in zip(centres, points, strict=True)
    ]
    limit = " L".join(f"{m.x - step / 2:.1f} {m.bound:.1f} L{m.x + step / 2:.1f} {m.bound:.1f}" for m in marks)
    backward = quantity.startswith("gradient")
    first = label = None
    summary = (
        f"all {len(points)} tensors are within their bounds; nearest to its bound: {_said(max(points, key=_ratio))}"
    )
    if outside:
        i = outside[-1 if backward else 0]
        first, end = marks[i], centres[i] > WIDTH / 2
        times = f", {_ratio(points[i]):.0e} times its bound" if math.isfinite(_ratio(points[i])) else ""
        text = f"{points[i].layer}: {number(points[i].distance)}{times}"
        label = Label(first.x - 6 if end else first.x + 6, top - 10, text, "end" if end else "start")
        where = "last layer (the first backward)" if backward else "first layer"
        summary = f"{len(outside)} of {len(points)} tensors beyond their bounds; {where}: {_said(points[i])}"
    groups, edges = _groups(points, step, top + PLOT + LINE - 2)
    return Panel(
        quantity,
        QUANTITIES.get(quantity, ""),
        backward,
        height=top + PLOT + 2 * LINE + 6,
        top=top,
        bottom=top + PLOT,
        step=round(step, 2),
        marks=marks,
        limit=f"M{limit}",
        ticks=scale.ticks(top),
        groups=groups,
        edges=edges,
        flags=flags,
        first=label,
        pointer=first,
        outside=len(outside),
        summary=summary,
    )


def _shape(point: Point) -> str:
    if not math.isfinite(point.distance):
        return "lost"
    return "dot" if point.ok else "out"


def _said(point: Point) -> str:
    return f"{point.layer}: {number(point.distance)} (bound {number(point.bound)})"


def _ratio(point: Point) -> float:
    """A layer's distance as a multiple of its bound; infinite if there is no number."""
    if not math.isfinite(point.distance):
        return math.inf
    return point.distance / point.bound if point.bound else (math.inf if point.distance else 0.0)


def _flags(
    points: Sequence[Point], centres: Sequence[float], findings: Sequence[tuple[int, Finding]]
) -> tuple[list[Label], int]:
    """The findings above the first of their layers, in as many lines as keep them apart, and that number of lines."""
    placed = []
    for i, finding in findings:
        inside = (x for p, x in zip(points, centres, strict=True) if _within(p.layer, finding.layer))
        if (x := next(inside, None)) is not None:
            placed.append((x, str(i)))
    lanes: list[float] = []
    found = []
    for x, text in sorted(placed):
        half = len(text) * LETTER / 2 + 6
        lane = next((i for i, right in enumerate(lanes) if right <= x - half), len(lanes))
        lanes[lane : lane + 1] = [x + half]
        found.append(Label(round(x, 1), lane * LINE + 12, text))
    return found, len(lanes)


def _within(name: str, layer: str) -> bool:
    """Whether a call (`conv#2`) or a parameter (`conv.weight`) belongs to a layer, or to a layer inside it."""
    return name == layer or name.startswith((f"{layer}.", f"{layer}#"))


def _groups(points: Sequence[Point], step: float, y: float) -> tuple[list[Label], list[float]]:
    """The parts of the network, at the depth where there are three, and the names for which there is room."""
    for depth in (1, 2, 3):
        parts = [".".join(p.layer.partition("#")[0].split(".")[:depth]) for p in points]
        runs = [(name, len(list(run))) for name, run in groupby(parts)]
        if len(runs) >= 3:
            break
    labels, edges, x, right = [], [], float(LEFT), 0.0
    for name, count in runs:
        half, middle = len(name) * LETTER / 2, x + count * step / 2
        middle = min(max(middle, half), WIDTH - half)
        if middle - half >= right:
            labels.append(Label(round(middle, 1), y, name))
            right = middle + half + LETTER
        x += count * step
        edges.append(round(x, 1))
    return labels, edges[:-1]
