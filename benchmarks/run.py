"""The run: every subject a process of its own, started several times, timed in turn.

At each start the subjects that fit into memory together are started, in random order. For each setting all of them
are built, judged and warmed; then rounds follow in which each is timed once, in random order, while the others wait.
What was measured is kept in the results file after every setting.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine, results, tables
from benchmarks.clock import MOST
from benchmarks.process import ROOT, Process, environment
from benchmarks.settings import Setting
from benchmarks.subjects import SUBJECTS
from ports.errors import UserError

INTERRUPTED = "the run was interrupted"
BEYOND = 10  # times as fast as the ceilings allow: such a subject does not do its work in every step
BUILDERS = 2  # that start and build at a time, after the first start


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        starts: of every subject's process.
        rounds: a start and setting; `seconds` of timing each.
        alive: how many processes there are at a time.
        builders: that start and build at a time in the first start; it says how long starting takes.
        warm: blocks of warming up, at most.
        budget: seconds after which nothing new is begun.
    """

    settings: Sequence[Setting]
    subjects: Sequence[str]
    starts: int = 5
    rounds: int = 5
    seconds: float = 1.0
    alive: int = 16
    builders: int = 1
    warm: int = MOST
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

    def building(self, setting: Setting, subject: str) -> float:
        """Seconds that building took so far."""
        starts = self.rows.get((setting.name, subject), {}).get("starts", ())
        return sum(start["build_seconds"] + start["first_step_seconds"] for start in starts)

    def open(self, setting: Setting, subject: str) -> bool:
        about = SUBJECTS[subject]
        suits = about.suits(setting.network, setting.mode, setting.device)
        return suits and (setting.name, subject) not in self.refused


def run(
    plan: Plan, folder: Path, out: Path | None, tell: Callable[[str], None], log: Path | None = None
) -> dict[str, Any]:
    """Measures, and gives the results; `out` has them so far after every setting, `log` what the processes wrote."""
    return Measurement(plan, folder, out, tell, log).run()


class Measurement:
    """One run of a plan."""

    def __init__(
        self, plan: Plan, folder: Path, out: Path | None, tell: Callable[[str], None], log: Path | None = None
    ) -> None:
        self.plan, self.folder, self.out, self.tell = plan, folder, out, tell
        self.begun, self.rng, self.rows = time.monotonic(), random.Random(plan.seed), Rows()
        self.found, self.log = results.fresh(plan), (log or folder / "log").absolute()
        self.processes: dict[str, Process] = {}

    def over(self, start: int) -> bool:
        """Whether the time is up, where something is still to be done: the results say so."""
        budget = self.plan.budget
        if budget is None or time.monotonic() - self.begun <= budget:
            return False
        self.found["ended"] = f"after {budget:.0f} s, in {self.at(start)}"
        return True

    def at(self, start: int) -> str:
        return f"start {start + 1} of {self.plan.starts}"

    def run(self) -> dict[str, Any]:
        plan, found = self.plan, self.found
        found["ended"] = INTERRUPTED  # what a file says that is kept before all was measured
        found["absent"] = {s: package for s in plan.subjects if (package := SUBJECTS[s].missing())}
        present = [subject for subject in plan.subjects if subject not in found["absent"]]
        self.references(present)
        for start in range(plan.starts):
            wanted = [s for s in present if any(self.rows.open(setting, s) for setting in plan.settings)]
            order = self.rng.sample(wanted, len(wanted))
            for group in (order[i : i + plan.alive] for i in range(0, len(order), plan.alive)):
                if not self.over(start):
                    found["readings"].append({"start": start, **machine.readings()})
                    self.group(start, group)
            if found["ended"] != INTERRUPTED:
                break
        found["readings"].append({"start": plan.starts, **machine.readings()})
        if found["ended"] == INTERRUPTED:
            del found["ended"]
        found["seconds"] = round(time.monotonic() - self.begun, 1)
        self.weigh()
        self.save()
        return found

    def weigh(self) -> None:
        """Refuses what was quicker than it can be, as a subject that keeps its answers."""
        for key, row in [*self.rows.rows.items()]:
            setting = Setting.of(row["setting"])
            about = tables.Context(None, results.ceiling(self.found, setting.precision), setting)
            part = tables.roofline(row, about) if row["rounds"] else None
            if part is not None and part > BEYOND:
                del self.rows.rows[key]
                why = f"a step took {tables.number(results.median(row))} ms, {part:,.0f} times as fast as the ceilings"
                self.rows.refuse(setting, row["subject"], f"{why} of this run allow: it does not do its work in each")

    def save(self) -> None:
        """What was measured so far."""
        self.found["rows"], self.found["refused"] = [*self.rows.rows.values()], [*self.rows.refused.values()]
        if self.out is not None:
            results.save(self.found, self.out)

    def references(self, subjects: Sequence[str]) -> None:
        """What must come out, in float64: one process makes it for all settings."""
        wanted = []
        for setting in self.plan.settings:
            rows = [SUBJECTS[subject] for subject in subjects if self.rows.open(setting, subject)]
            different = sorted({json.dumps(dict(row.changes)) for row in rows}, key=len)
            wanted += [(setting.asdict(), json.loads(changes)) for changes in different]
        command = [sys.executable, "-m", "benchmarks.prepare", json.dumps(wanted), str(self.folder)]
        at = error = None
        variables = environment(self.folder, self.plan.settings[0].device)
        with (
            self.log.open("ab") as errors,
            subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as made,
        ):
            for line in made.stdout or ():
                told = json.loads(line)
                at, error = told.get("at", at), told.get("error")
                if "accepted" in told:
                    self.found["accepted"] = self.found.get("accepted", {}) | {told["network"]: told["accepted"]}
                    continue
                self.tell(f"{at}: what must come out, in float64")
        if made.returncode:
            said = error or f"the reference ended with exit code {made.returncode}; --log FILE keeps why"
            raise UserError(said if said.startswith(str(at).partition(",")[0]) else f"{at}: {said}")

    def group(self, start: int, subjects: Sequence[str]) -> None:
        """One start of some subjects, through all settings."""
        with ThreadPoolExecutor(self.together(start)) as pool:
            self.processes = dict(zip(subjects, pool.map(self.launch, subjects), strict=True))
        try:
            self.ceilings(start)
            for setting in self.plan.settings:
                if not self.over(start):
                    self.setting(start, setting)
                    self.save()
        finally:
            for process in self.processes.values():  # all are told before the first is waited for
                process.leave()
            for process in self.processes.values():
                process.close()

    def together(self, start: int) -> int:
        """Subjects that start and build at a time."""
        return self.plan.builders if start == 0 else BUILDERS

    def launch(self, subject: str) -> Process:
        self.tell(f"starting {subject}")
        return Process(subject, self.folder, self.plan.settings[0].device, self.log)

    def setting(self, start: int, setting: Setting) -> None:
        """Builds, judges and times every subject that suits a setting."""
        wanted = [subject for subject in self.processes if self.rows.open(setting, subject)]
        # Two that compute at a time wait for one another's threads, so all are warmed one after the other.
        wanted.sort(key=lambda subject: -self.rows.building(setting, subject))  # so that the builders end together
        with ThreadPoolExecutor(self.together(start)) as pool:
            built = pool.map(lambda subject: self.built(start, setting, subject), wanted)
        timed = [subject for subject, right in zip(wanted, built, strict=True) if right and self.warm(setting, subject)]
        for number in range(self.plan.rounds):
            for subject in self.rng.sample(timed, len(timed)):
                self.tell(f"{self.at(start)}, round {number + 1}, {setting}: {subject}")
                single = setting.batch == 1 and setting.mode == "inference"
                answer = self.processes[subject].ask("round", seconds=self.plan.seconds, single=single)
                if "error" in answer:
                    self.rows.refuse(setting, subject, answer["error"])
                    timed.remove(subject)
                    continue
                row = self.rows.row(setting, subject)
                row["rounds"].append({"start": start, "round": number, "steps": answer["steps"], "ms": answer["ms"]})
                row["each"] += answer["each"]
        with ThreadPoolExecutor(BUILDERS) as pool:
            list(pool.map(lambda subject: self.release(setting, subject, subject in timed), wanted))

    def release(self, setting: Setting, subject: str, timed: bool) -> None:
        """Lets a subject's setting go; keeps what it took."""
        row = self.rows.rows.get((setting.name, subject), {})
        told = self.processes[subject].ask("release", cost="cost" not in row)
        if timed and "error" not in told:
            row.update(told)

    def built(self, start: int, setting: Setting, subject: str) -> bool:
        """Whether a subject is built, and judged to be right."""
        if self.processes[subject].failed:  # it died at another setting
            self.processes[subject].close()
            self.processes[subject] = self.launch(subject)
        self.tell(f"{self.at(start)}, {setting}: building {subject}")
        answer = dict(self.processes[subject].ask("prepare", setting=setting.asdict()))
        if "error" in answer:
            self.rows.refuse(setting, subject, answer["error"])
            return False
        gate = answer.pop("gate")
        if not gate["ok"]:
            self.rows.refuse(setting, subject, f"no parity: {gate['text']}")
            return False
        row = self.rows.row(setting, subject)
        row["gate"] = gate
        started = self.processes[subject].start_seconds
        row["starts"].append({"start": start, "start_seconds": started, "cold": start == 0, **answer})
        return True

    def warm(self, setting: Setting, subject: str) -> bool:
        """Whether a subject that was built could be warmed."""
        answer = self.processes[subject].ask("warm", most=self.plan.warm)
        if "error" in answer:
            self.rows.refuse(setting, subject, answer["error"])
            return False
        self.rows.row(setting, subject)["starts"][-1].update(answer)
        return True

    def ceilings(self, start: int) -> None:
        """What the device can do, by either framework."""
        for framework in ("pytorch", "jax"):
            alive = (p for s, p in self.processes.items() if SUBJECTS[s].framework == framework and not p.failed)
            process = next(alive, None)
            if process is None:
                continue
            for precision in dict.fromkeys(setting.precision for setting in self.plan.settings):
                told = process.ask("ceilings", device=self.plan.settings[0].device, precision=precision)
                if "error" not in told:
                    row = {"start": start, "framework": framework, "precision": precision, **told}
                    self.found["ceilings"].append(row)
