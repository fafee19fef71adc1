"""A report as one page that opens without a network: verdict, findings, table, every layer drawn, environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from parity.quantities import QUANTITIES
from parity.report import Model, Point, Report

# The drawing, in units of its view box: a panel's width and height, and the margins for the numbers.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 190, 64, 12, 10, 16
# Distances below this are drawn at the bottom: one unit in the last place is 2.2e-16.
SMALLEST = 1e-17


@dataclass(frozen=True)
class Mark:
    """One layer in a panel, in the units of the drawing."""

    x: float
    y: float
    bound: float
    ok: bool
    text: str


@dataclass(frozen=True)
class Panel:
    """One quantity of one port, layer by layer.

    Attributes:
        bound: the path of the bound.
        ticks: (y, label) of the scale.
        first: the first layer beyond its bound: for gradients the last, for they go backward.
    """

    quantity: str
    about: str
    marks: Sequence[Mark]
    bound: str
    ticks: Sequence[tuple[float, str]]
    first: Mark | None
    summary: str


def page(report: Report) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parity"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html").render(
        report=report,
        quantities=QUANTITIES,
        drawings={model.model: drawings(model) for model in report.models},
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
    )


def number(value: float) -> str:
    """`1.2e-15`; words where there is no number."""
    if math.isnan(value):
        return "not a number"
    return "infinite" if math.isinf(value) else f"{value:.1e}"


def drawings(model: Model) -> list[tuple[str, list[Panel]]]:
    """By port, a panel a quantity; all panels of a model have one scale."""
    points = [p for found in model.profile.values() for row in found.values() for p in row]
    values = [v for p in points for v in (p.distance, p.bound) if math.isfinite(v) and v > SMALLEST]
    if not values:
        return []
    scale = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))))
    if scale[0] == scale[1]:
        scale = (scale[0], scale[0] + 1)
    return [
        (port, [_panel(quantity, row, scale) for quantity, row in found.items() if row])
        for port, found in model.profile.items()
    ]


def _panel(quantity: str, points: Sequence[Point], scale: tuple[int, int]) -> Panel:
    low, high = scale

    def height(value: float) -> float:
        if not math.isfinite(value):
            return float(TOP)
        part = (math.log10(max(value, SMALLEST)) - low) / (high - low)
        return round(HEIGHT - BOTTOM - min(max(part, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP), 1)

    step = (WIDTH - LEFT - RIGHT) / len(points)
    marks = [
        Mark(
            round(LEFT + (i + 0.5) * step, 1),
            height(p.distance),
            height(p.bound),
            p.ok,
            f"{p.layer}: {number(p.distance)} (bound {number(p.bound)})",
        )
        for i, p in enumerate(points)
    ]
    path = "M" + " L".join(f"{m.x - step / 2:.1f} {m.bound:.1f} L{m.x + step / 2:.1f} {m.bound:.1f}" for m in marks)
    every = max(1, (high - low) // 6)
    ticks = [(height(10.0**power), f"1e{power}") for power in range(low, high + 1, every)]
    outside = [m for m in marks if not m.ok]
    first = (outside[-1] if quantity.startswith("gradient") else outside[0]) if outside else None
    worst = max(points, key=lambda p: (not p.ok, p.distance / p.bound if p.bound else p.distance))
    summary = f"{len(points)} tensors, {len(outside)} beyond their bounds; nearest or farthest: {worst.layer}"
    return Panel(quantity, QUANTITIES.get(quantity, ""), marks, path, ticks, first, summary)
