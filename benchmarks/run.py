"""The run: every subject a process of its own, started several times, timed in turn.

At each start the subjects that fit into memory together are started, in random order. For each setting all of them
are built, judged and warmed; then rounds follow in which each is timed once, in random order, while the others wait.
What was measured is kept in the results file after every setting.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine, results
from benchmarks.process import ROOT, Process, environment
from benchmarks.settings import Setting
from benchmarks.subjects import SUBJECTS
from ports.errors import UserError


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        starts: of every subject's process.
        rounds: a start and setting; `seconds` of timing each.
        alive: how many processes there are at a time.
        budget: seconds after which nothing new is begun.
    """

    settings: Sequence[Setting]
    subjects: Sequence[str]
    starts: int = 5
    rounds: int = 5
    seconds: float = 1.0
    alive: int = 16
    budget: float | None = None
    seed: int = 0


@dataclass
class Rows:
    """Measurements by setting and subject, and what was refused."""

    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    refused: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def row(self, setting: Setting, subject: str) -> dict[str, Any]:
        about = SUBJECTS[subject]
        return self.rows.setdefault(
            (setting.name, subject),
            {
                "setting": setting.asdict(),
                "subject": subject,
                "about": about.about,
                "framework": about.framework,
                "peer": about.peer,
                "rounds": [],
                "each": [],
                "starts": [],
            },
        )

    def refuse(self, setting: Setting, subject: str, why: str) -> None:
        row = {"setting": setting.asdict(), "subject": subject, "why": why}
        self.refused.setdefault((setting.name, subject), row)

    def open(self, setting: Setting, subject: str) -> bool:
        about = SUBJECTS[subject]
        suits = about.suits(setting.network, setting.mode, setting.device)
        return suits and (setting.name, subject) not in self.refused


def run(plan: Plan, folder: Path, out: Path | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measures, and gives the results; `out` has them so far after every setting."""
    begin, rng, rows = time.monotonic(), random.Random(plan.seed), Rows()
    found = results.fresh(plan)
    device = plan.settings[0].device
    log = folder / "log"

    def over() -> bool:
        return plan.budget is not None and time.monotonic() - begin > plan.budget

    for subject in plan.subjects:
        if package := SUBJECTS[subject].missing():
            found["absent"][subject] = package
    present = [subject for subject in plan.subjects if subject not in found["absent"]]
    for setting in plan.settings:
        tell(f"{setting}: what must come out, in float64")
        wanted = [subject for subject in present if rows.open(setting, subject)]
        for changes in sorted({json.dumps(dict(SUBJECTS[subject].changes)) for subject in wanted}, key=len):
            _prepare(setting, changes, folder, log)
    for start in range(plan.starts):
        order = rng.sample(present, len(present))
        for group in (order[i : i + plan.alive] for i in range(0, len(order), plan.alive)):
            if over():
                found["ended"] = f"after {plan.budget:.0f} s, in start {start + 1} of {plan.starts}"
                break
            found["readings"].append({"start": start, **machine.readings()})
            _group(plan, start, group, rows, found, folder, device, log, rng, tell, over)
            found["rows"], found["refused"] = [*rows.rows.values()], [*rows.refused.values()]
            if out is not None:
                results.save(found, out)
    found["readings"].append({"start": plan.starts, **machine.readings()})
    found["seconds"] = round(time.monotonic() - begin, 1)
    found["rows"], found["refused"] = [*rows.rows.values()], [*rows.refused.values()]
    if out is not None:
        results.save(found, out)
    return found


def _group(
    plan: Plan,
    start: int,
    group: Sequence[str],
    rows: Rows,
    found: dict[str, Any],
    folder: Path,
    device: str,
    log: Path,
    rng: random.Random,
    tell: Callable[[str], None],
    over: Callable[[], bool],
) -> None:
    """One start of some subjects."""

    def launch(subject: str) -> Process:
        tell(f"start {start + 1} of {plan.starts}: {subject}")
        return Process(subject, folder, device, log)

    wanted = [s for s in group if any(rows.open(setting, s) for setting in plan.settings)]
    together = 1 if start == 0 else os.cpu_count() or 1  # the first start alone says what starting takes
    with ThreadPoolExecutor(together) as pool:
        processes = dict(zip(wanted, pool.map(launch, wanted), strict=True))
    try:
        _ceilings(plan, start, processes, found)
        for setting in plan.settings:
            if over():
                return
            _setting(plan, start, setting, processes, rows, rng, tell, launch)
    finally:
        for process in processes.values():
            process.close()


def _setting(
    plan: Plan,
    start: int,
    setting: Setting,
    processes: dict[str, Process],
    rows: Rows,
    rng: random.Random,
    tell: Callable[[str], None],
    launch: Callable[[str], Process],
) -> None:
    """Builds, judges and times every subject that suits a setting."""

    def prepare(subject: str) -> Any:
        if processes[subject].failed:  # it died at another setting
            processes[subject].close()
            processes[subject] = launch(subject)
        tell(f"{setting}: building {subject}")
        return processes[subject].ask("prepare", setting=setting.asdict())

    timed = []
    wanted = [subject for subject in processes if rows.open(setting, subject)]
    for subject in wanted:  # one after the other: two that compute at a time wait for one another's threads
        answer = prepare(subject)
        if "error" in answer:
            rows.refuse(setting, subject, answer["error"])
        elif not answer["gate"]["ok"]:
            rows.refuse(setting, subject, f"no parity: {answer['gate']['text']}")
        else:
            row = rows.row(setting, subject)
            row["gate"] = answer["gate"]
            taken = {"start": start, "start_seconds": processes[subject].start_seconds, "cold": start == 0}
            row["starts"].append({**taken, **{n: v for n, v in answer.items() if n != "gate"}})
            timed.append(subject)
    for number in range(plan.rounds):
        for subject in rng.sample(timed, len(timed)):
            tell(f"{setting}: round {number + 1} of {plan.rounds}: {subject}")
            single = setting.batch == 1 and setting.mode == "inference"
            answer = processes[subject].ask("round", seconds=plan.seconds, single=single)
            if "error" in answer:
                rows.refuse(setting, subject, answer["error"])
                timed.remove(subject)
                continue
            row = rows.row(setting, subject)
            row["rounds"].append({"start": start, "round": number, "steps": answer["steps"], "ms": answer["ms"]})
            row["each"] += answer["each"]
    for subject in wanted:
        told = processes[subject].ask("release")
        if subject in timed and "error" not in told:
            rows.row(setting, subject).update(told)


def _ceilings(plan: Plan, start: int, processes: dict[str, Process], found: dict[str, Any]) -> None:
    """What the device can do, by either framework."""
    for framework in ("pytorch", "jax"):
        subject = next((s for s, p in processes.items() if SUBJECTS[s].framework == framework and not p.failed), None)
        if subject is None:
            continue
        for precision in dict.fromkeys(setting.precision for setting in plan.settings):
            told = processes[subject].ask("ceilings", device=plan.settings[0].device, precision=precision)
            if "error" not in told:
                found["ceilings"].append({"start": start, "framework": framework, "precision": precision, **told})


def _prepare(setting: Setting, changes: str, folder: Path, log: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.prepare", json.dumps(setting.asdict()), changes, str(folder)]
    with log.open("ab") as errors:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(folder, setting.device),
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
        )
    if done.returncode:
        said = done.stdout.decode().strip() or f"the reference ended with exit code {done.returncode}; see {log}"
        raise UserError(f"{setting}: {said}")
