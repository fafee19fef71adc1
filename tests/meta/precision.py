"""Limits of working precision, from faithful runs; their rate of false alarms; and what they find of planted mistakes.

`python -m tests.meta.precision --store` writes `benchmarks/results/precision-limits.json`, whose figures
`parity/verdict/limits.py` has. Faithful pairs with drawn weights and inputs give the largest ratio of a port's error to
PyTorch's; the limit is some times as far from 1 (`FAR`). Other draws then say how often that limit is wrong.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from scipy.stats import beta

from parity.diagnosis import precise, rounding
from parity.diagnosis.precise import Place
from parity.reports import terminal
from parity.reports.progress import progress
from parity.running import isolation
from parity.running.subject import Subject
from parity.verdict.limits import DEVIATIONS, FEW, KINDS, LEAST, LIMITS, Limit

from . import commit
from .precision_mistakes import MISTAKES, Mistake
from .precision_pairs import FAITHFUL, Pair, fresh

STORED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "precision-limits.json"

# Seeds of the runs that are drawn to find the limits, the last two of them the worst of 667 runs that were made before
# slices counted; those that judge the limits come behind.
CALIBRATION, FIRST = (0, 1, 2, 3, 4, 100, 113), 200

# So many times as far from 1 as the largest ratio is a limit. In float32 errors of right ports have long tails, such as
# those of a variance that cancels, and a mistake is a narrower type: hundreds of times and more.
FAR = {"float32": 20.0, "bfloat16": 2.0}

# The largest ratio counts as so far from 1 at least.
NEAREST = 0.05


@dataclass(frozen=True)
class Extremes:
    """One faithful run.

    Attributes:
        largest, smallest: by kind of place, the ratios nearest to a limit, without what few numbers may add.
        at: where the largest of all is.
        less, more: whether the port is called less, or more, precise anywhere.
    """

    pair: str
    dtype: str
    seed: int
    largest: dict[str, float]
    smallest: dict[str, float]
    at: str
    places: int
    less: bool
    more: bool


@dataclass(frozen=True)
class Found:
    """What the check makes of one planted mistake.

    Attributes:
        caught: a place is outside of its limit, on the right side.
        layer: the first such place is in the module of the mistake.
    """

    name: str
    dtype: str
    caught: bool
    layer: bool
    said: str
    more: bool


def places(subject: Subject, pair: Pair, dtype: str, seed: int) -> list[Place]:
    """Return the places of the faithful run with this seed."""
    with isolation.isolated():
        drawn = fresh(subject, pair.feed, seed)
        return list(precise.places(rounding.measure(drawn, "nnx", dtype), dtype))


def extremes(pair: Pair, dtype: str, seed: int, found: Sequence[Place]) -> Extremes:
    """Return what one run adds to a measurement. Places that PyTorch holds in another type have that type's limits."""
    judged = [place for place in found if place.held == dtype]
    top = max(judged, key=lambda p: p.ratio / p.highest)
    largest = {kind: max((p.ratio / p.spread for p in judged if p.kind == kind), default=1.0) for kind in KINDS}
    smallest = {kind: min((p.over * p.over_spread for p in judged if p.kind == kind), default=1.0) for kind in KINDS}
    less, more = (any(getattr(place, kind) for place in judged) for kind in ("less", "more"))
    at = f"{top.key[1]} ({top.key[0]})"
    return Extremes(pair.name, dtype, seed, largest, smallest, at, len(judged), less, more)


def limits_of(runs: Sequence[Extremes]) -> tuple[dict[str, float], dict[str, float]]:
    """Return by kind the largest and the smallest ratio that a right port may have, from faithful runs."""
    times = FAR[runs[0].dtype]
    far = {kind: max(max(run.largest[kind] for run in runs) - 1, NEAREST) for kind in KINDS}
    near = {kind: max(1 / min(run.smallest[kind] for run in runs) - 1, NEAREST) for kind in KINDS}
    less = {kind: round(1 + times * value, 2) for kind, value in far.items()}
    return less, {kind: round(1 / (1 + times * value), 2) for kind, value in near.items()}


def interval(count: int, total: int) -> tuple[float, float]:
    """Return Clopper and Pearson's 95 % interval of a rate."""
    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return low, high


@dataclass(frozen=True)
class Bench:
    """The faithful pairs, each made once, and where to say what is done."""

    subjects: Mapping[str, tuple[Pair, Subject]]
    say: Callable[[str], None]

    def runs(self, dtype: str, seed: int) -> list[Extremes]:
        """Return the run of every pair that has this type."""
        found = []
        for pair, subject in self.subjects.values():
            if dtype in pair.dtypes:
                self.say(f"{dtype}, seed {seed}: {pair.name}")
                found.append(extremes(pair, dtype, seed, places(subject, pair, dtype, seed)))
        return found


def bench(say: Callable[[str], None]) -> Bench:
    """Make every faithful pair."""
    subjects = {}
    for pair in FAITHFUL:
        say(pair.name)
        subjects[pair.name] = pair, pair.subject()
    return Bench(subjects, say)


def plant(mistake: Mistake) -> Found:
    """Plant one mistake and judge it."""
    subject = mistake.pair.subject()
    with isolation.isolated():
        judged = precise.judged(subject, "nnx", mistake.dtype)
    layers = [finding.layer for finding in judged.findings]
    if mistake.more:
        layers = [line.split(": ")[1] for line in judged.advice]
    said = "; ".join(layers) or "nothing"
    return Found(mistake.name, mistake.dtype, bool(layers), layers[:1] == [mistake.layer], said, mistake.more)


def summary(dtype: str, calibration: Sequence[Extremes], judged: Sequence[Extremes]) -> dict[str, Any]:
    """Return what is stored of a type."""
    less, more = limits_of(calibration)
    alarms, over = sum(run.less for run in judged), sum(run.more for run in judged)
    worst = {kind: max(judged, key=lambda run, kind=kind: run.largest[kind]) for kind in KINDS}
    return {
        "less": less,
        "more": more,
        "calibration": {
            "runs": len(calibration),
            "places": sum(run.places for run in calibration),
            "largest": {kind: max(run.largest[kind] for run in calibration) for kind in KINDS},
            "smallest": {kind: min(run.smallest[kind] for run in calibration) for kind in KINDS},
        },
        "runs": len(judged),
        "places": sum(run.places for run in judged),
        "alarms": alarms,
        "interval": interval(alarms, len(judged)),
        "over_precise": over,
        "over_precise_interval": interval(over, len(judged)),
        "worst": {kind: asdict(run) for kind, run in worst.items()},
        "pairs": Counter(run.pair for run in judged),
    }


def share(found: Sequence[Found], what: str) -> dict[str, Any]:
    """Return how many mistakes of how many, with the interval of the rate."""
    count = sum(getattr(one, what) for one in found)
    return {"count": count, "of": len(found), "interval": interval(count, len(found))}


def table(stored: Mapping[str, Any]) -> list[str]:
    """Return the lines of the documentation's table: the limits, and how often they are wrong."""
    lines = ["| type | layer | between | scores | faithful runs | places | false alarms, 95 % interval |"]
    lines.append("|---|---|---|---|---|---|---|")
    for dtype, one in stored["types"].items():
        limits = " | ".join(f"{one['less'][kind]:g}" for kind in KINDS)
        rate = f"{one['alarms']} ({one['interval'][0]:.2%} to {one['interval'][1]:.2%})"
        lines.append(f"| {dtype} | {limits} | {one['runs']:,} | {one['places']:,} | {rate} |")
    return lines


def planted(stored: Mapping[str, Any]) -> str:
    """Return what the documentation says of planted mistakes."""
    caught, layer = (stored["mistakes"][what] for what in ("caught", "layer"))
    low, high = caught["interval"]
    return (
        f"{caught['count']} of {caught['of']} planted mistakes are found ({low:.0%} to {high:.0%}, 95 % interval), "
        f"{layer['count']} at their layer"
    )


def faithful(runs: int, bench: Bench) -> Iterator[dict[str, Any]]:
    """Find the limits, and judge them by runs of ever more seeds; yield what is stored of the types after each."""
    calibration = {dtype: [run for seed in CALIBRATION for run in bench.runs(dtype, seed)] for dtype in LIMITS}
    for dtype, found in calibration.items():
        LIMITS[dtype] = Limit(*limits_of(found), 0, 0, 1.0)
    judged: dict[str, list[Extremes]] = {dtype: [] for dtype in LIMITS}
    seed = FIRST
    while min(map(len, judged.values())) < runs:
        for dtype, found in judged.items():
            found += bench.runs(dtype, seed)
        seed += 1
        yield {dtype: summary(dtype, calibration[dtype], judged[dtype]) for dtype in LIMITS}


app = typer.Typer(add_completion=False, rich_markup_mode=None)

Runs = Annotated[int, typer.Option(metavar="N", help="Faithful runs of each type, at least, that judge its limit.")]
Store = Annotated[bool, typer.Option("--store", help="Write benchmarks/results/precision-limits.json.")]
Planted = Annotated[bool, typer.Option("--mistakes", help="Plant the mistakes alone.")]


@app.command()
def measure(runs: Runs = 500, store: Store = False, mistakes: Planted = False) -> int:
    """Find limits from faithful runs, judge them by others, and plant mistakes.

    Exit 1 where more than one planted mistake in 20 is missed.
    """
    result: dict[str, Any] = {"schema": 1, "types": {}} if not STORED.exists() else json.loads(STORED.read_text())
    result |= {"few": FEW, "deviations": DEVIATIONS, "least": LEAST, "draws": rounding.DRAWS, "commit": commit()}

    def write() -> None:
        if store:
            STORED.write_text(json.dumps(result, indent=1) + "\n")

    with progress("precision") as say:
        if not mistakes:
            for types in faithful(runs, bench(say)):
                result["types"] = types
                write()
        found = []
        for mistake in MISTAKES:
            say(mistake.name)
            found.append(plant(mistake))
    result["mistakes"] = {what: share(found, what) for what in ("caught", "layer")}
    result["planted"] = [asdict(one) for one in found]
    write()
    missed = [asdict(one) for one in found if not one.caught]
    print(json.dumps({"types": result["types"], **result["mistakes"], "missed": missed}, indent=1))
    return int(len(missed) > 0.05 * len(found))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "precision", arguments, "python -m tests.meta.precision")


if __name__ == "__main__":
    sys.exit(main())
