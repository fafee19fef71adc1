"""The score: every entry of the catalogue planted in a Flax port, and what the check makes of it; and false alarms.

A check that finds nothing wrong anywhere, or something wrong everywhere, is worth nothing: mistakes must be caught, at
the right layer and by the right name, and faithful ports must pass.
"""

from __future__ import annotations

import difflib
import gc
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.reporting import intervals
from parity.numerics.bounds import MULTIPLE
from parity.reports.report import finite
from parity.traps import catalogue
from ports.errors import UserError

from . import faithful
from .between import BETWEEN
from .layers import LAYERS
from .losses import LOSSES
from .planted import Case
from .training import TRAINING
from .weights import WEIGHTS

# By family: the place where the catalogue's traps are planted.
CASES: dict[str, tuple[Case, ...]] = {
    "weight": WEIGHTS,
    "layer": LAYERS,
    "between": BETWEEN,
    "loss": LOSSES,
    "training": TRAINING,
}

# The parts of all cases that must be caught, found at the right layer, and called by the right name.
TARGETS = {"caught": 1.0, "layer": 0.95, "name": 0.95}

# Cases of a quick score, evenly over the tables.
SAMPLE = 14

# So many cases or faithful runs are one piece of work: networks of the faithful runs come in eights.
PART = 5 * faithful.REPEATS


@dataclass(frozen=True)
class Result:
    """What the check made of one planted mistake.

    Attributes:
        caught: the check ends with exit code 1.
        layer: a finding stands at the layer of the mistake, and the first of all does.
        name: that finding has its name, and no finding has a name that is not part of the mistake.
        said: every finding, layer and name; or the error.
    """

    family: str
    trap: str
    caught: bool
    layer: bool
    name: bool
    said: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.caught and self.layer and self.name


def run(family: str, case: Case) -> Result:
    """Plants and checks."""
    import parity

    begin = time.monotonic()
    torch.manual_seed(0)
    options: Any = {"steps": 1, **case.options}
    try:
        report = parity.check(*case.make(), **options)
    except Exception as error:  # whatever the check raises, the mistake was not found
        said = f"{type(error).__name__}: {error}"
        return Result(family, case.trap, False, False, False, said, round(time.monotonic() - begin, 2))
    findings = report.models[0].findings
    found = [f.trap for f in findings if f.layer == case.layer]
    names = {f.trap for f in findings}
    return Result(
        family,
        case.trap,
        caught=report.exit_code == 1,
        layer=bool(findings) and findings[0].layer == case.layer,
        name=case.trap in found and names <= {case.trap, *case.also},
        said="; ".join(f"{f.layer} [{f.trap}]" for f in findings),
        seconds=round(time.monotonic() - begin, 2),
    )


def without_case() -> list[str]:
    """The entries of the catalogue that no case plants."""
    planted = {(family, case.trap) for family, cases in CASES.items() for case in cases}
    return [f"{t.place}: {t.name}" for t in catalogue.TRAPS if (t.place, t.name) not in planted]


def sample(cases: Mapping[str, Sequence[Case]], count: int) -> dict[str, tuple[Case, ...]]:
    """About so many cases, evenly over the tables."""
    total = sum(map(len, cases.values()))
    every = max(1, round(total / count))
    return {family: tuple(some[::every]) for family, some in cases.items()}


@dataclass(frozen=True)
class Score:
    """Mistakes planted, faithful runs, and the entries that nothing plants."""

    results: tuple[Result, ...]
    faithful: tuple[faithful.Result, ...] = ()
    unplanted: tuple[str, ...] = ()

    def share(self, what: str, family: str | None = None) -> tuple[int, int]:
        """How many of how many cases are caught, found at the layer, or called by the name."""
        some = [r for r in self.results if family in (None, r.family)]
        return sum(getattr(r, what) for r in some), len(some)

    @property
    def ok(self) -> bool:
        """Whether every target is met, nothing is left unplanted, and every faithful run passes."""
        reached = all(
            count >= part * total > 0 for what, part in TARGETS.items() for count, total in [self.share(what)]
        )
        return reached and not self.unplanted and all(r.ok for r in self.faithful)

    def to_json(self) -> dict[str, Any]:
        """Schema 2: of faithful runs that pass there are counts, by the kind of their network."""
        shares = {what: self.share(what) for what in TARGETS}
        alarms = [r for r in self.faithful if not r.ok]
        entries = {
            "schema": 2,
            "ok": self.ok,
            "commit": commit(),
            "cases": len(self.results),
            **{what: count for what, (count, _) in shares.items()},
            "intervals": {what: intervals.exact(*share) for what, share in shares.items() if share[1]},
            "targets": TARGETS,
            "unplanted": list(self.unplanted),
            "faithful": len(self.faithful),
            "false_alarms": len(alarms),
            "worst_multiple": max((r.multiple for r in self.faithful), default=None),
            "results": [asdict(r) for r in self.results],
            "faithful_runs": dict(Counter(r.network for r in self.faithful)),
            "alarms": [asdict(r) for r in alarms],
        }
        return finite(entries)


def commit() -> str | None:
    """Of the checkout that this package stands in; None where there is none."""
    command = ("git", "-C", str(Path(__file__).resolve().parents[2]), "rev-parse", "HEAD")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def table(score: Score) -> Table:
    """A row a family."""
    result = Table("family", box=None, pad_edge=False)
    for heading in ("entries", "cases", "caught", "right layer", "right name"):
        result.add_column(heading, justify="right")
    for family in (*dict.fromkeys(r.family for r in score.results), None):
        entries = len({(r.family, r.trap) for r in score.results if family in (None, r.family)})
        shares = [score.share(what, family) for what in TARGETS]
        cells = [f"{count} ({count / max(total, 1):.1%})" for count, total in shares]
        result.add_row(family or "all", str(entries), str(shares[0][1]), *cells)
    return result


def lines(score: Score) -> list[str]:
    """Every miss, every false alarm, and the verdict."""
    said = [f"{r.family}: {r.trap}: {_missed(r)}: {r.said or 'no finding'}" for r in score.results if not r.ok]
    said += [f"no case plants {entry}" for entry in score.unplanted]
    said += [f"false alarm: seed {r.seed} ({r.network}, {r.dtype}): {r.said}" for r in score.faithful if not r.ok]
    if score.faithful:
        worst = max(score.faithful, key=lambda r: r.multiple)
        passed = sum(r.ok for r in score.faithful)
        said.append(
            f"{passed} of {len(score.faithful)} faithful runs pass; the worst tensor stands at {worst.multiple:.1f} "
            f"times its rounding response (seed {worst.seed}, {worst.at}), the bound is {MULTIPLE}"
        )
    wanted = ", ".join(f"{what} {part:.0%}" for what, part in TARGETS.items())
    return [*said, f"score: {'targets met' if score.ok else 'targets NOT met'} ({wanted}, no false alarm)"]


def _missed(result: Result) -> str:
    if not result.caught:
        return "not caught"
    return "another layer" if not result.layer else "another name"


def of_trap(name: str) -> dict[str, tuple[Case, ...]]:
    """Return the cases that plant a trap.

    Raises:
        UserError: no case plants a trap of this name.
    """
    chosen = {family: tuple(case for case in cases if case.trap == name) for family, cases in CASES.items()}
    if not any(chosen.values()):
        if any(trap.name == name for trap in catalogue.TRAPS):
            raise UserError(f"--trap: {name}: got a known trap without a case; add a Case to its place in tests/meta/")
        names = sorted({case.trap for cases in CASES.values() for case in cases})
        near = difflib.get_close_matches(name, names, 1, 0)[0]
        raise UserError(f"--trap: got {name!r}, expected the name of a trap that a case plants, such as {near!r}")
    return chosen


def measure(
    chosen: Mapping[str, Sequence[Case]],
    runs: int,
    workers: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Score:
    """Plant these cases, and make so many faithful runs.

    Args:
        chosen: by family, some of `CASES`.
        workers: processes that share the work.
    """
    cases = [(family, i) for family, some in chosen.items() for i in map(CASES[family].index, some)]
    seeds = [range(first, min(first + PART, runs)) for first in range(0, runs, PART)]
    results, alarms = [], []
    with pool(workers) as spread:
        for part in spread(_planted, [cases[i : i + PART] for i in range(0, len(cases), PART)]):
            results += part
            progress(f"{len(results)} of {len(cases)} mistakes, {sum(r.ok for r in results)} found and named")
        for part in spread(_faithful, seeds):
            alarms += part
            progress(f"{len(alarms)} of {runs} faithful runs, {sum(r.ok for r in alarms)} pass")
    return Score(tuple(results), tuple(alarms), tuple(without_case()))


@contextmanager
def pool(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, in this process or in several."""
    gc.freeze()  # what is there already is not looked through again and again
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the frameworks' threads
    with ProcessPoolExecutor(workers, context, initializer=gc.freeze) as pool:
        yield pool.map


def _planted(part: Sequence[tuple[str, int]]) -> list[Result]:
    """The results of some cases, by family and number."""
    with faithful.compiled_once():
        return [run(family, CASES[family][i]) for family, i in part]


def _faithful(seeds: range) -> list[faithful.Result]:
    return faithful.runs(len(seeds), seeds.start)
