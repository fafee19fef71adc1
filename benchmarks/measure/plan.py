"""What a run measures (`RunPlan`), what it has measured so far (`Rows`), and one subject in one setting (`Program`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure.clock import MOST
from benchmarks.reporting.schema import GateRow, RefusedRow, ResultRow
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting


@dataclass
class RunPlan:
    """The work of a run, and its limits.

    Attributes:
        starts: how often each subject's process is started.
        rounds: rounds of timing in each start and setting; a round takes `seconds`.
        alive: processes that exist at a time.
        builders: processes that start and compile at a time in the first start; `later_builders` in later ones.
        warm: the largest number of blocks for warming up.
        budget: seconds after which nothing new begins.
        pairs: the programs to measure; by default each setting with each of `subjects` that suits it.
        limits: hard limits, with programs that compile in parallel; without them one setting follows the other.
    """

    settings: Sequence[Setting]
    subjects: Sequence[str]
    starts: int = 5
    rounds: int = 5
    seconds: float = 1.0
    alive: int = 16
    builders: int = 1
    later_builders: int = 2
    warm: int = MOST
    budget: float | None = None
    seed: int = 0
    pairs: Sequence[tuple[Setting, str]] | None = None
    limits: Limits | None = None

    def programs(self) -> list[tuple[Setting, str]]:
        """List every subject in every setting that it suits."""
        if self.pairs is not None:
            return [*self.pairs]
        return [
            (setting, subject)
            for setting in self.settings
            for subject in self.subjects
            if SUBJECTS[subject].suits(setting.network, setting.mode, setting.device)
        ]

    def described(self) -> dict[str, Any]:
        """Return the part of the plan that a results file keeps."""
        names = ("starts", "rounds", "seconds", "alive", "builders", "warm", "budget", "seed")
        return {name: getattr(self, name) for name in names} | {
            "limits": vars(self.limits) if self.limits is not None else None
        }


@dataclass(frozen=True)
class Limits:
    """Limits of a run that must end in time.

    Every program has its own process, and programs of all settings compile in parallel.

    Attributes:
        total: seconds after which the run stops all that still works.
        build: seconds after which a program that still compiles is stopped.
        patience: seconds that the other programs of its setting wait for one that compiles; then they are timed first.
        answer: seconds that a warm-up or a block may take.
        memory: bytes of device memory for all processes; None where it is not counted (CPU).
    """

    total: float
    build: float
    patience: float = 100
    answer: float = 15
    memory: float | None = None


@dataclass(eq=False)
class Program:
    """One subject in one setting, in one start.

    Attributes:
        case: the setting, with the changes of the subject's network: it says which reference the program is compared
            with.
        state: waiting, starting (its process), started (waits for its reference and memory), building, ready or done.
        since: when it began to start or, later, to build, by the run's clock.
        paused: seconds since then in which it was paused, because another program was timed.
        alone: whether it needs the whole device, because memory ran out while others used it.
    """

    setting: Setting
    subject: str
    state: str = "waiting"
    since: float = 0.0
    paused: float = 0.0
    alone: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.setting.name, self.subject

    @property
    def case(self) -> str:
        return case_of(self.setting, SUBJECTS[self.subject].changes)

    @property
    def compiles(self) -> bool:
        return self.state in ("starting", "building")

    @property
    def uses_memory(self) -> bool:
        return self.state in ("building", "ready")


def case_of(setting: Setting, changes: Mapping[str, Any]) -> str:
    """Return the name of a reference: a setting, and the changes of a network."""
    return json.dumps([setting.name, dict(changes)])


@dataclass
class Rows:
    """Measurements by setting and subject, and what was refused."""

    rows: dict[tuple[str, str], ResultRow] = field(default_factory=dict)
    refused: dict[tuple[str, str], RefusedRow] = field(default_factory=dict)

    def add(self, setting: Setting, subject: str, gate: GateRow) -> ResultRow:
        """Return the row of a subject that passed the gate; the row may exist already."""
        about = SUBJECTS[subject]
        row: ResultRow = {
            "setting": setting.asdict(),
            "subject": subject,
            "about": about.about,
            "framework": about.framework,
            "peer": about.peer,
            "rounds": [],
            "each": [],
            "starts": [],
            "gate": gate,
        }
        row = self.rows.setdefault((setting.name, subject), row)
        row["gate"] = gate
        return row

    def row(self, setting: Setting, subject: str) -> ResultRow:
        return self.rows[setting.name, subject]

    def refuse(self, setting: Setting, subject: str, why: str) -> None:
        row: RefusedRow = {"setting": setting.asdict(), "subject": subject, "why": why}
        self.refused.setdefault((setting.name, subject), row)

    def has_rounds(self, setting: Setting, subject: str) -> bool:
        row = self.rows.get((setting.name, subject))
        return row is not None and bool(row["rounds"])

    def building(self, setting: Setting, subject: str) -> float:
        """Return the seconds that building took so far."""
        row = self.rows.get((setting.name, subject))
        starts = [] if row is None else row["starts"]
        return sum(start["build_seconds"] + start["first_step_seconds"] for start in starts)

    def open(self, setting: Setting, subject: str) -> bool:
        return (setting.name, subject) not in self.refused
