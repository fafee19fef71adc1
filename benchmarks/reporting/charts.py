"""Plots as SVG: throughput by batch, latency, roofline, and where the time to the first step goes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting import results
from benchmarks.reporting.schema import ResultRow, Results, StartRow
from benchmarks.subjects import model_cost
from benchmarks.subjects.settings import Setting
from parity.reports import terminal
from ports import families
from ports.errors import UserError
from ports.families import NETWORKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish; each framework has a family of marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKS = {"pytorch": "o", "jax": "s"}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of all plots.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib, which is not installed; pip install 'ports-parity[bench]'") from None
    style: Any = {
        "svg.fonttype": "path",
        "svg.hashsalt": "benchmarks",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(style):
        yield


def draw(found: Results) -> dict[str, str]:
    """The plots for which these results have data, by name.

    Raises:
        UserError: matplotlib is not installed.
    """
    with styled():
        made = {name: plot(found) for name, plot in PLOTS.items()}
    return {name: svg for name, svg in made.items() if svg is not None}


def write(found: Results, folder: Path) -> list[Path]:
    """Write the plots as files.

    Raises:
        UserError: the folder or a file in it cannot be written, or matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--svg {folder}: cannot be made: {error.strerror}; expected a folder to write to") from None
    paths = []
    for name, svg in draw(found).items():
        paths.append(folder / f"{name}.svg")
        terminal.write("--svg", paths[-1], svg)
    return paths


def figure_of(panels: int, height: float = 2.6, width: float = 4.6) -> tuple[Figure, list[Axes]]:
    """Return a figure with this many panels in two columns, and its axes."""
    from matplotlib.figure import Figure

    columns = min(panels, 2)
    lines = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * lines))
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure, axes[:panels]


def svg_of(figure: Figure) -> str:
    """Return a figure as the text of an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _colours(found: Results) -> dict[str, str]:
    names = list(dict.fromkeys(row["subject"] for row in found["rows"]))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def _families(found: Results) -> dict[tuple[str, str, str], list[Setting]]:
    """Settings that differ only in their batch."""
    families: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in results.settings_of(found):
        if results.rows_of(found, setting):
            families.setdefault((setting.network, setting.mode, setting.precision), []).append(setting)
    return families


def throughput(found: Results) -> str | None:
    """A line a subject over batches; bars where there is one batch."""
    families, colours = _families(found), _colours(found)
    if not families:
        return None
    figure, axes = figure_of(len(families), 3.0)
    for (family, settings), axis in zip(families.items(), axes, strict=True):
        axis.set_title(" ".join(family) + (f", batch {settings[0].batch}" if len(settings) == 1 else ""), fontsize=9)
        if len(settings) == 1:
            rows = list(reversed(results.rows_of(found, settings[0])))
            values = [results.throughput(row) for row in rows]
            batch = settings[0].batch
            spread = [[], []]
            for row, value in zip(rows, values, strict=True):
                low, high = results.quartiles(row)
                spread[0].append(value - batch / high * 1e3)
                spread[1].append(batch / low * 1e3 - value)
            names = [row["subject"] for row in rows]
            axis.barh(names, values, color=[colours[name] for name in names], xerr=spread, error_kw={"lw": 0.8})
            axis.set_xlabel("images/s (lines: quartiles)")
            continue
        for subject, colour in colours.items():
            points = [
                (s.batch, row) for s in settings for row in results.rows_of(found, s) if row["subject"] == subject
            ]
            if points:
                axis.plot(
                    [batch for batch, _ in points],
                    [results.throughput(row) for _, row in points],
                    marker=MARKS[points[0][1]["framework"]],
                    color=colour,
                    label=subject,
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([s.batch for s in settings], [str(s.batch) for s in settings])
        _plain(axis.yaxis)
        axis.set_xlabel("batch")
        axis.set_ylabel("images/s")
        axis.legend(fontsize=7, frameon=False)
    return svg_of(figure)


def latency(found: Results) -> str | None:
    """Single steps that were waited for: median and 99th percentile."""
    chosen = [
        (s, rows) for s in results.settings_of(found) if (rows := [r for r in results.rows_of(found, s) if r["each"]])
    ]
    if not chosen:
        return None
    figure, axes = figure_of(len(chosen))
    colours = _colours(found)
    for (setting, rows), axis in zip(chosen, axes, strict=True):
        names = [row["subject"] for row in reversed(rows)]
        middle = [statistics.median(row["each"]) for row in reversed(rows)]
        tail = [results.p99(row) or 0.0 for row in reversed(rows)]
        axis.barh(names, middle, color=[colours[name] for name in names])
        axis.plot(tail, names, "k|", ms=9, label="99th percentile")
        axis.set_title(str(setting), fontsize=9)
        axis.set_xlabel("ms a step, waiting for each step")
        axis.legend(fontsize=7, frameon=False)
    return svg_of(figure)


def roofline(found: Results) -> str | None:
    """FLOP/s that a subject reaches over the FLOP a byte that its network needs, below the device's own ceilings."""
    precisions = [p for p in found["policies"] if results.ceiling(found, p)]
    rows = [row for row in found["rows"] if row["rounds"] and row["setting"]["network"] in NETWORKS]
    if not precisions or not rows:
        return None
    figure, axes = figure_of(len(precisions), 3.4, 6.4)
    colours = _colours(found)
    for precision, axis in zip(precisions, axes, strict=True):
        top = results.ceiling(found, precision)
        assert top is not None
        told: set[str] = set()
        intensities = []
        for row in rows:
            setting = Setting.of(row["setting"])
            if setting.precision != precision:
                continue
            need = model_cost.cost(families.get(setting.network), setting)
            intensities.append(need.flops / need.bytes)
            name = row["subject"]
            axis.plot(
                intensities[-1],
                need.flops / results.median(row) / 1e6,
                MARKS[row["framework"]],
                color=colours[name],
                mfc="none" if setting.mode == "training" else colours[name],
                label=None if name in told else name,
            )
            told.add(name)
        ridge = top["flops"] / top["bytes"]
        left, right = min([ridge, *intensities]) / 3, max([ridge, *intensities]) * 3
        line = [left, ridge, right]
        axis.plot(line, [min(top["flops"], x * top["bytes"]) / 1e9 for x in line], "k-", lw=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        _plain(axis.xaxis)
        _plain(axis.yaxis)
        axis.set_xlabel("FLOP per byte that the network needs (filled: inference, open: training)")
        axis.set_ylabel("GFLOP/s")
        axis.set_title(f"{precision}: below the measured ceilings", fontsize=9)
    _legend(figure, axes[0])
    return svg_of(figure)


PARTS: dict[str, Callable[[StartRow], float]] = {
    "start and import": lambda start: start["start_seconds"],
    "build": lambda start: start["build_seconds"],
    "first step (traces, compiles)": lambda start: start["first_step_seconds"],
}


def time(found: Results) -> str | None:
    """The parts of the time to the first step, with nothing compiled before."""
    chosen = [
        (s, rows) for s in results.settings_of(found) if (rows := [r for r in results.rows_of(found, s) if _cold(r)])
    ]
    if not chosen:
        return None
    figure, axes = figure_of(len(chosen))
    for (setting, rows), axis in zip(chosen, axes, strict=True):
        names, left = [row["subject"] for row in reversed(rows)], [0.0] * len(rows)
        for i, (part, seconds) in enumerate(PARTS.items()):
            widths = [statistics.median(seconds(start) for start in _cold(row)) for row in reversed(rows)]
            axis.barh(names, widths, left=left, color=COLOURS[i], label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_title(str(setting), fontsize=9)
        axis.set_xlabel("seconds to the first step")
    _legend(figure, axes[0])
    return svg_of(figure)


def _plain(axis: Axis) -> None:
    """Write a few numbers on a logarithmic axis, in usual notation."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axis: Axes) -> None:
    """One legend for all panels, below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def _cold(row: ResultRow) -> Sequence[StartRow]:
    return [start for start in row["starts"] if start["cold"]]


PLOTS: dict[str, Callable[[Results], str | None]] = {
    "throughput": throughput,
    "latency": latency,
    "roofline": roofline,
    "time": time,
}
