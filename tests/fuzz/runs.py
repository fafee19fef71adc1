"""The kinds of runs: what a case of each is, and the table of what came of them."""

from __future__ import annotations

import json
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports.weights.files.formats import FORMATS

from . import judge, mutate, seeds, workers
from .seeds import Files
from .workers import Job, Result

KEPT = 3  # cases of each fault that are kept


@dataclass(frozen=True)
class Plan:
    """What a run is asked for.

    Attributes:
        count: cases of each format.
        minutes: after them no further case begins.
        keep: the folder where cases with faults go.
    """

    count: int = 1000
    seed: int = 0
    formats: tuple[str, ...] = tuple(FORMATS)
    minutes: float | None = None
    workers: int = 1
    keep: Path = Path("fuzz-faults")
    first: int = 0
    small: bool = False

    @property
    def jobs(self) -> list[Job]:
        return [(name, i) for i in range(self.first, self.first + self.count) for name in self.formats]


@dataclass
class Row:
    """What came of the cases of one format."""

    cases: int = 0
    written: int = 0
    cpu: float = 0.0
    memory: float = 0.0
    faults: int = 0
    more: Counter[str] = field(default_factory=Counter)


@dataclass
class Table:
    """One row a format, and what is wrong."""

    kind: str
    rows: dict[str, Row]
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, job: Job, result: Result) -> None:
        row = self.rows[job[0]]
        row.cases += 1
        row.written += bool(result.get("written"))
        row.cpu = max(row.cpu, result.get("cpu", 0.0))
        row.memory = max(row.memory, result.get("memory", 0.0))
        row.more.update(result.get("more", {}))
        row.faults += bool(result["faults"])
        for fault in result["faults"]:
            self.faults.setdefault(fault, []).append(f"{job[0]} {job[1]}{' kept' if result.get('kept') else ''}")

    def __str__(self) -> str:
        extra = sorted({name for row in self.rows.values() for name in row.more})
        head = ["format", "cases", "written", "refused", "CPU s", "memory", "faults", *extra]
        lines = [head]
        for name, row in self.rows.items():
            numbers = [
                row.cases,
                row.written,
                row.cases - row.written,
                f"{row.cpu:.2f}",
                f"{row.memory:.0%}",
                row.faults,
            ]
            lines.append([name, *map(str, numbers), *(str(row.more[one]) for one in extra)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines)
        return f"{self.kind}\n{text}"


def signature(fault: str) -> str:
    """Return a fault without the numbers and names of one case."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"(w|out)\S*|'[^']*'|\"[^\"]*\"", "~", fault))[:120]


def first_files(plan: Plan) -> dict[str, list[Files]]:
    """Return the whole files of each format, without the large ones where the run is a short one."""
    small = plan.small
    return pickle.loads(workers.forked(lambda: pickle.dumps(seeds.everything(list(plan.formats), small=small))))


def rng_of(plan: Plan, job: Job) -> random.Random:
    return random.Random(f"{plan.seed} {job[0]} {job[1]}")


def drawn(rng: random.Random, files: list[Files]) -> Files:
    """Return one of the whole files; large ones, which take longer, more rarely."""
    weights = [1 / (1 + sum(map(len, one.values())) / 20_000) for one in files]
    return rng.choices(files, weights)[0]


def mutations(plan: Plan) -> Table:
    """Changed files through both commands."""
    whole = first_files(plan)

    def work(folder: Path, job: Job) -> Result:
        rng = rng_of(plan, job)
        name = job[0]
        files = mutate.changed(rng, drawn(rng, whole[name]), whole[name])
        return judged(plan, folder, job, files, judge.options(rng, name))

    return collect("mutations", plan, work)


def judged(plan: Plan, folder: Path, job: Job, files: Files, how: judge.Options, *, deep: bool = True) -> Result:
    """Return what a case came to; keep it where something is wrong."""
    found = judge.judge(folder, job[0], files, how, deep=deep)
    result: Result = {"written": found.written, "cpu": found.cpu, "memory": found.memory, "faults": found.faults}
    if found.faults:
        result["kept"] = keep(plan, job, files, how, found.faults)
    return result


SEEN: Counter[str] = Counter()


def keep(plan: Plan, job: Job, files: Files, how: judge.Options, faults: list[str]) -> bool:
    """Keep a case in a folder, with what is wrong; return whether it was, for of each fault only some are."""
    new = [fault for fault in faults if SEEN[signature(fault)] < KEPT]
    SEEN.update(map(signature, faults))
    if not new:
        return False
    folder = plan.keep / f"{job[0]}-{plan.seed}-{job[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    seeds.laid(folder / f"w{seeds.suffix(job[0])}", files)
    about = {"format": job[0], "faults": faults, **vars(how)}
    (folder / "case.json").write_text(json.dumps(about, indent=1))
    return True


def replay(folder: Path) -> list[str]:
    """Return what is wrong with a case that was kept."""
    import tempfile

    about = json.loads((folder / "case.json").read_text())
    name = about.pop("format")
    about.pop("faults")
    options: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in about.items()}
    how = judge.Options(**options)
    files = seeds.collected(folder / f"w{seeds.suffix(name)}")
    with tempfile.TemporaryDirectory(dir=workers.place()) as place, judge.watched():
        return judge.judge(Path(place), name, files, how).faults


def collect(
    kind: str, plan: Plan, work: Callable[[Path, Job], Result], *, sort: Callable[[Job], Any] | None = None,
    jobs: Iterable[Job] | None = None,
) -> Table:  # fmt: skip
    table = Table(kind, {name: Row() for name in plan.formats})
    for job, result in workers.share(list(jobs or plan.jobs), work, plan.workers, plan.minutes, sort):
        table.add(job, result)
        if result.get("died"):
            print(f"fuzz: {job[0]} {job[1]}: {result['faults'][0]}", file=sys.stderr)
    return table
