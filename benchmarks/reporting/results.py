"""Results files: measurements, with machine and plan; and the figures computed from them.

A file holds measurements, never a figure rounded for a table: one row per setting and subject, with every timed block.
This module computes all figures in tables and plots from these rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.reporting.schema import KIND, SCHEMA, ResultRow, Results
from benchmarks.subjects.settings import PRECISIONS, Setting
from benchmarks.subjects.subject import FAST, SWEPT
from parity.reports.terminal import write
from ports.errors import UserError

DRAWS = 2000  # of the bootstrap


def fresh(machine: dict[str, Any], settings: Sequence[Setting], plan: dict[str, Any]) -> Results:
    """Return the results of a run that has measured nothing yet."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "machine": machine,
        "device": settings[0].device,
        "plan": plan,
        "policies": {p: PRECISIONS[p] for p in dict.fromkeys(s.precision for s in settings)},
        "rows": [],
        "refused": [],
        "absent": {},
        "ceilings": [],
        "readings": [],
        "gpu": [],
    }


def save(found: Results, path: Path) -> None:
    """Write a file that appears whole or not at all."""
    write("--out", path, json.dumps(found, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read a results file of timings.

    Raises:
        UserError: no such file, another kind of file, or another schema.
    """
    return cast("Results", read(path, KIND, SCHEMA, "python -m benchmarks --out"))


def read(path: Path, kind: str, schema: int, command: str) -> dict[str, Any]:
    """Read a results file of a kind.

    Args:
        command: what writes such files.

    Raises:
        UserError: no such file, another kind of file, or another schema.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"results {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"results {path}: got no JSON, expected a file of `{command}`") from None
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise UserError(f"results {path}: got another kind of file, expected one of `{command}`")
    if found.get("schema") != schema:
        raise UserError(f"results {path}: got schema {found.get('schema')!r}, expected {schema}; measure again")
    return found


def settings_of(found: Results) -> list[Setting]:
    """List the settings, in the order of the file."""
    return list(dict.fromkeys(Setting.of(row["setting"]) for row in (*found["rows"], *found["refused"])))


def rows_of(found: Results, setting: Setting) -> list[ResultRow]:
    """List the rows of a setting that have measurements, the fastest first."""
    rows = [row for row in found["rows"] if Setting.of(row["setting"]) == setting and row["rounds"]]
    return sorted(rows, key=median)


def blocks(row: ResultRow) -> list[list[float]]:
    """Return the milliseconds a step of every block, by start."""
    by_start: dict[int, list[float]] = {}
    for one in row["rounds"]:
        by_start.setdefault(one["start"], []).append(one["ms"])
    return [by_start[start] for start in sorted(by_start)]


def median(row: ResultRow) -> float:
    """Return the milliseconds a step: the median of all blocks."""
    return statistics.median(ms for start in blocks(row) for ms in start)


def quartiles(row: ResultRow) -> tuple[float, float]:
    low, high = np.percentile([ms for start in blocks(row) for ms in start], [25, 75])
    return float(low), float(high)


def p99(row: ResultRow) -> float | None:
    """Return the 99th percentile of single steps, each of which was waited for."""
    return float(np.percentile(row["each"], 99)) if row["each"] else None


def throughput(row: ResultRow) -> float:
    """Return the images a second."""
    return row["setting"]["batch"] / median(row) * 1e3


def ratio(row: ResultRow, base: ResultRow, seed: int = 0) -> tuple[float, float, float]:
    """Return how many times faster `row` is than `base`, and the bootstrap's 95 % interval.

    The bootstrap draws starts, and within a start its rounds, because blocks of one process are more alike than blocks
    of two. If both rows are from one run, ratio and draws use the same starts and rounds of both, because they were
    timed in turn.
    """
    rng, a, b = np.random.default_rng(seed), _table(row), _table(base)
    # A run that was stopped may have rounds of only one of the two subjects: a pair needs both.
    shared = {start: rounds for start in a if start in b and (rounds := sorted(set(a[start]) & set(b[start])))}
    if not shared:
        return _unpaired(row, base, rng)
    ours, theirs = ([[table[start][number] for number in shared[start]] for start in shared] for table in (a, b))
    # Both use the same draws, so a slow moment of the machine is in both medians and cancels in their ratio.
    drawn = _drawn(rng, ours)
    mine, other = (statistics.median(ms for start in starts for ms in start) for starts in (ours, theirs))
    return _interval(other / mine, _medians(theirs, drawn) / _medians(ours, drawn))


def across(row: ResultRow, base: ResultRow, seed: int = 0) -> tuple[float, float, float]:
    """Return the `ratio` of rows of two runs: nothing is paired."""
    return _unpaired(row, base, np.random.default_rng(seed))


def _unpaired(row: ResultRow, base: ResultRow, rng: np.random.Generator) -> tuple[float, float, float]:
    a, b = (_medians(starts, _drawn(rng, starts)) for starts in (blocks(row), blocks(base)))
    return _interval(median(base) / median(row), b / a)


def _table(row: ResultRow) -> dict[int, dict[int, float]]:
    table: dict[int, dict[int, float]] = {}
    for one in row["rounds"]:
        table.setdefault(one["start"], {})[one["round"]] = one["ms"]
    return table


def _drawn(rng: np.random.Generator, starts: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Draw starts, and in each as many rounds as it has: (draw, start) and (draw, start, round).

    Starts may have different numbers of rounds; -1 fills up the shorter ones.
    """
    lengths = np.array([len(rounds) for rounds in starts])
    # All draws at once, in arrays: one by one they take seconds for every figure of a table.
    chosen = rng.integers(0, len(starts), (DRAWS, len(starts)))
    length = lengths[chosen][:, :, None]
    rounds = (rng.random((DRAWS, len(starts), lengths.max())) * length).astype(int)
    return chosen, np.where(np.arange(lengths.max()) < length, rounds, -1)


def _medians(starts: Sequence[Sequence[float]], drawn: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the median of the blocks of every draw."""
    chosen, rounds = drawn
    # The last column stays NaN: index -1 points there, and `nanmedian` leaves it out.
    table = np.full((len(starts), rounds.shape[2] + 1), np.nan)
    for at, values in enumerate(starts):
        table[at, : len(values)] = values
    return np.nanmedian(table[chosen[:, :, None], rounds].reshape(DRAWS, -1), axis=1)


def _interval(value: float, drawn: np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)


def ceiling(found: Results, precision: str) -> dict[str, float] | None:
    """Return the best rates that either framework reached in this run: FLOP/s and bytes/s."""
    seen = [one for one in found["ceilings"] if one["precision"] == precision]
    return {what: max(one[what] for one in seen) for what in ("flops", "bytes")} if seen else None


def first_step(row: ResultRow, cold: bool = True) -> float | None:
    """Return the seconds from starting the process to the end of the first step.

    Args:
        cold: with nothing compiled before; otherwise with warm compiler caches.
    """
    seconds = [
        s["start_seconds"] + s["build_seconds"] + s["first_step_seconds"] for s in row["starts"] if s["cold"] == cold
    ]
    return statistics.median(seconds) if seconds else None


def host(row: ResultRow) -> float | None:
    """Return the milliseconds of the host's part of a step."""
    times = [ms for start in row["starts"] if (ms := start.get("host_ms")) is not None]
    return statistics.median(times) if times else None


def best(rows: Sequence[ResultRow], framework: str, peer: bool | None = None, fast: bool = False) -> ResultRow | None:
    """Return the fastest row of a framework, without the rows with additional flags.

    Args:
        peer: only peers, or only ports.
        fast: ports with `ports.fast` instead of those without.
    """
    some = [row for row in rows if row["framework"] == framework and (peer is None or row["peer"] == peer)]
    some = [row for row in some if row["subject"].endswith(FAST) == fast and SWEPT not in row["subject"]]
    return min(some, key=median, default=None)
