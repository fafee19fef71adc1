"""The same rows for the terminal, for README and for the page: figures as text, one column per quantity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting import results
from benchmarks.reporting.schema import ResultRow, Results
from benchmarks.subjects import model_cost
from benchmarks.subjects.settings import Setting
from ports import families
from ports.families import NETWORKS

BASES = ("pytorch", "own-pytorch", "pytorch-channels-last")  # the first that is there is the one of the ratios
BUSY = 0.4  # cores that others may use
APART = 2.0  # times that one block of a subject may take another's time


@dataclass(frozen=True)
class Table:
    """A setting's rows, with `notes` about them."""

    setting: Setting
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Context:
    """The data that a column may use."""

    base: ResultRow | None
    ceiling: dict[str, float] | None
    setting: Setting


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def times(value: tuple[float, float, float]) -> str:
    """A ratio with its interval, if there is one: a single block has none."""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" if value[1] < value[2] else f"{value[0]:.2f}"


def _ms(row: ResultRow, _: Context) -> str:
    low, high = results.quartiles(row)
    return f"{number(results.median(row))} ({number(low)}–{number(high)})"


def _p99(row: ResultRow, _: Context) -> str:
    value = results.p99(row)
    return "" if value is None else number(value)


def _ratio(row: ResultRow, context: Context) -> str:
    if context.base is None:
        return ""
    return "1" if row is context.base else times(results.ratio(row, context.base))


def _bound(row: ResultRow, context: Context) -> str:
    part = roofline(row, context)
    return "" if part is None else f"{100 * part:.0f} %"


def roofline(row: ResultRow, context: Context) -> float | None:
    """The fraction of the device's own ceilings that a subject reaches."""
    if context.ceiling is None or context.setting.network not in NETWORKS:
        return None
    least = model_cost.cost(families.get(context.setting.network), context.setting).seconds(context.ceiling)
    return least * 1e3 / results.median(row)


def _seconds(cold: bool) -> Callable[[ResultRow, Context], str]:
    def text(row: ResultRow, _: Context) -> str:
        value = results.first_step(row, cold)
        return "" if value is None else f"{value:.1f}"

    return text


def _host(row: ResultRow, _: Context) -> str:
    value = results.host(row)
    return "" if value is None else f"{value:.2g}"


def _memory(row: ResultRow, _: Context) -> str:
    peak = row.get("peak_bytes")
    return f"{peak / 1e9:.2f}" if peak else ""


def _flops(row: ResultRow, _: Context) -> str:
    told = row.get("cost", {}).get("flops")
    return f"{told / 1e9:.3g}" if told else ""


COLUMNS: dict[str, Callable[[ResultRow, Context], str]] = {
    "subject": lambda row, _: row["subject"],
    "parity, of its bound": lambda row, _: f"{row['gate']['worst']:.2g}",
    "images/s": lambda row, _: f"{results.throughput(row):.4g}" if row["setting"]["batch"] else "",
    "ms a step (quartiles)": _ms,
    "p99 ms": _p99,
    "times eager [95 %]": _ratio,
    "of the bound": _bound,
    "host ms": _host,
    "first step s": _seconds(True),
    "compiled before": _seconds(False),
    "GB": _memory,
    "GFLOP by its compiler": _flops,
}


def context(found: Results, setting: Setting) -> Context:
    rows = results.rows_of(found, setting)
    base = next((row for name in BASES for row in rows if row["subject"] == name), None)
    return Context(base, results.ceiling(found, setting.precision), setting)


def table(found: Results, setting: Setting) -> Table:
    """The fastest first; columns that no row fills are left out."""
    rows, about = results.rows_of(found, setting), context(found, setting)
    cells = [[text(row, about) for text in COLUMNS.values()] for row in rows]
    kept = [i for i in range(len(COLUMNS)) if any(line[i] for line in cells)]
    head = [name for i, name in enumerate(COLUMNS) if i in kept]
    return Table(setting, head, [[line[i] for i in kept] for line in cells], notes(found, setting, rows))


def tables(found: Results) -> list[Table]:
    return [table(found, setting) for setting in results.settings_of(found)]


FLAX: dict[str, Any] = {"framework": "jax", "peer": False}
PYTORCH: dict[str, Any] = {"framework": "pytorch", "peer": False}
COMPARISONS: tuple[tuple[str, dict[str, Any], str, dict[str, Any]], ...] = (
    ("fastest Flax port", FLAX, "fastest PyTorch port", PYTORCH),
    ("fastest Flax port", FLAX, "fastest JAX peer", FLAX | {"peer": True}),
    ("fastest PyTorch port", PYTORCH, "fastest PyTorch peer", PYTORCH | {"peer": True}),
    ("fastest Flax port with ports.fast", FLAX | {"fast": True}, "fastest without", FLAX),
    ("fastest PyTorch port with ports.fast", PYTORCH | {"fast": True}, "fastest without", PYTORCH),
)


def notes(found: Results, setting: Setting, rows: Sequence[ResultRow]) -> list[str]:
    """The comparisons that people look for, and the subjects that were refused."""
    lines = []
    for ours, which, theirs, other in COMPARISONS:
        a, b = results.best(rows, **which), results.best(rows, **other)
        if a is not None and b is not None:
            ratio = times(results.ratio(a, b))
            lines.append(f"{ours} ({a['subject']}) is {ratio} times as fast as the {theirs} ({b['subject']})")
    for row in found["refused"]:
        if Setting.of(row["setting"]) == setting:
            lines.append(f"not timed: {row['subject']}: {row['why']}")
    for row in rows:
        kept = Counter(start["options"] for start in row["starts"] if "options" in start)
        if kept:
            counted = ", ".join(f"{flags} ({n} of {sum(kept.values())} starts)" for flags, n in kept.most_common())
            lines.append(f"{row['subject']} kept {counted}")
    restless = [row["subject"] for row in rows if not all(start.get("calm", True) for start in row["starts"])]
    spread = [row["subject"] for row in rows if _apart(row) > APART]
    if spread:
        lines.append(
            f"blocks of one subject differ by more than {APART:g} times, do not trust them: {', '.join(spread)}"
        )
    if restless:
        lines.append(f"did not settle before it was timed: {', '.join(restless)}")
    return lines


def _apart(row: ResultRow) -> float:
    times = [ms for start in results.blocks(row) for ms in start]
    return max(times) / min(times)


def below(found: Results) -> list[str]:
    """The sentences about the whole run."""
    machine, plan = found["machine"], found["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']['name']}, driver {machine['gpu']['driver_version']}; " if machine["gpu"] else ""
    where = f"{gpu}{machine['processor']}, {machine['cores']} cores"
    begun, rounds = _counted(started(found), "start"), _counted(plan["rounds"], "round")
    lines = [
        f"Measured on {machine['date'][:10]} on the {found['device'].upper()}: {where}; Python {machine['python']}, "
        f"{versions}.",
        f"{begun} of each process, {rounds} of {plan['seconds']:g} s in each, in turn; "
        "medians; intervals are the bootstrap's over starts and rounds.",
    ]
    for precision, policy in found["policies"].items():
        top = results.ceiling(found, precision)
        if top is not None:
            flops, moved = f"{top['flops'] / 1e9:,.0f} GFLOP/s", f"{top['bytes'] / 1e9:.1f} GB/s"
            lines.append(
                f"{precision}: {policy}. Ceilings in this run: {flops} (a product of matrices), {moved} (a copy)."
            )
    lines += [
        f"Absent: {subject}: the package {package} is not installed." for subject, package in found["absent"].items()
    ]
    lines += [
        f"{network}: its file has the check accept {', '.join(names)}."
        for network, names in found.get("accepted", {}).items()
    ]
    if plan.get("builders", 1) > 1:
        lines.append(
            f"Times to the first step were measured with {plan['builders']} subjects starting at a time; "
            "compilers that choose kernels by timing them were not alone."
        )
    busy = max((one.get("busy", 0.0) for one in found["readings"]), default=0.0)
    if busy > BUSY:
        lines.append(
            f"Something else ran: {busy:.1f} of {machine['cores']} cores were busy before a start, when nothing of "
            "this run was. Such figures can be wrong by any factor; measure again on an idle machine."
        )
    lines += [*_gpu(found), *_clocks(found)]
    if ended := found.get("ended"):
        lines.append(f"Ended early: {ended}.")
    return lines


def _gpu(found: Results) -> list[str]:
    """Say what the GPU's clocks, power and temperature were right after the blocks."""
    seen = found.get("gpu", ())
    ranges = {
        name: _range(row.get(name, "") for row in seen) for name in ("clocks.sm", "power.draw", "temperature.gpu")
    }
    if not all(ranges.values()):
        return []
    reasons = sorted({reason for row in seen if (reason := row.get("clocks_throttle_reasons.active"))})
    return [
        f"The GPU right after {len(seen)} blocks: SM clock {ranges['clocks.sm']} MHz, {ranges['power.draw']} W, "
        f"{ranges['temperature.gpu']} °C; reasons for throttling: {', '.join(reasons) or 'not told'}."
    ]


def _range(texts: Iterable[str]) -> str:
    """Return the least and the greatest number at the beginning of these texts."""
    values = [float(match[0]) for text in texts if (match := re.match(r"[\d.]+", text))]
    return f"{min(values):g} to {max(values):g}" if values else ""


def _clocks(found: Results) -> list[str]:
    """Say by how much the GPU's clock and the host's differ, and which blocks had no GPU clock."""
    blocks = [one for row in found["rows"] for one in row["rounds"]]
    both = [(one["ms"], events) for one in blocks if (events := one.get("events"))]
    lines = []
    if both:
        apart = max(abs(events / ms - 1) for ms, events in both)
        lines.append(f"The GPU's event timers and the host's clock differ by at most {100 * apart:.2g} % of a block.")
    whys = {why for row in found["rows"] for start in row["starts"] if (why := start.get("no_events"))}
    return lines + [f"Some blocks have the host's clock alone: {why}." for why in sorted(whys)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def started(found: Results) -> int:
    """The number of starts: fewer than planned if a run ended early."""
    return 1 + max((one["start"] for row in found["rows"] for one in row["rounds"]), default=-1)


def markdown(one: Table) -> list[str]:
    """A table for README."""
    lines = [f"**{one.setting}**", "", "| " + " | ".join(one.head) + " |", "|" + "---|" * len(one.head)]
    lines += ["| " + " | ".join(row) + " |" for row in one.rows]
    return [*lines, "", *(f"- {note}" for note in one.notes)]
