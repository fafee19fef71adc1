"""The run: every subject has its own process, which is started several times and timed in turn with the others.

In each start, programs (a subject in a setting) compile, are judged against the reference, and wait. When no program of
a setting compiles any more, its programs are warmed up and timed: in each round every program once, in random order,
while nothing else works. The results file is written after every block.

Without `Limits` a subject's process goes through the settings one by one. With `Limits` every program has its own
process, all settings compile in parallel as far as cores and memory allow, and compiling pauses while a program is
timed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import description
from benchmarks.measure.crew import Crew
from benchmarks.measure.plan import Program, Rows, RunPlan
from benchmarks.measure.process import Process, World
from benchmarks.measure.references import References
from benchmarks.reporting import results, tables
from benchmarks.reporting.schema import BlockRow, CeilingRow, Results
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting
from ports.errors import UserError

INTERRUPTED = "the run was interrupted"
BEYOND = 10  # times as fast as the ceilings allow: such a subject does not do its work in every step
ANSWER = 1800.0  # seconds that a command may take where there are no limits
CEILING = 20.0  # seconds that measuring a ceiling may take with limits
SILENT = 2  # times that a subject may give no answer
ANOTHER = 20.0  # seconds that starting everything again takes, with compilers' caches


def run(plan: RunPlan, folder: Path, out: Path | None, tell: Callable[[str], None], log: Path | None = None) -> Results:
    """Measure, and return the results; `out` has them after every block, `log` what the processes wrote."""
    return Measurement(plan, folder, out, tell, log).run()


class Measurement:
    """One run of a plan."""

    def __init__(
        self,
        plan: RunPlan,
        folder: Path,
        out: Path | None,
        tell: Callable[[str], None],
        log: Path | None = None,
        world: World | None = None,
    ) -> None:
        self.plan, self.folder, self.out, self.tell = plan, folder, out, tell
        self.world = world or World(folder, plan.settings[0].device, (log or folder / "log").absolute())
        self.begun, self.rng, self.rows = self.world.now(), random.Random(plan.seed), Rows()
        self.found = results.fresh(description.described(), plan.settings, plan.described())
        self.start, self.passes, self.is_over = 0, Counter[str](), False
        self.silent = Counter[str]()  # how often a subject gave no answer

    def run(self) -> Results:
        plan, found = self.plan, self.found
        found["ended"] = INTERRUPTED  # what a file says that is kept before all was measured
        asked = plan.programs()
        found["absent"] = {s: package for _, s in asked if (package := SUBJECTS[s].missing())}
        asked = [(setting, subject) for setting, subject in asked if subject not in found["absent"]]
        found["readings"].append({"start": 0, **self.world.readings()})
        self.references = References(asked, self.folder, self.world, self.tell)
        self.crew = Crew(plan, self.world, self.rows, self.references, self.tell, self.begun)
        try:
            for start in range(plan.starts):
                if self.ends_before(start):
                    break
                self.one_start(start, asked)
        finally:
            self.references.stop("the run ended")
            self.crew.close([*self.crew.lanes])
        found["readings"].append({"start": plan.starts, **self.world.readings()})
        if found["ended"] == INTERRUPTED:
            del found["ended"]
        found["seconds"] = round(self.spent(), 1)
        self.weigh()
        self.save()
        return found

    def spent(self) -> float:
        return self.world.now() - self.begun

    def end(self, seconds: float) -> None:
        """Note that the time is up while something is left to do."""
        self.is_over = True
        self.found["ended"] = f"after {seconds:.0f} s, in start {self.start + 1} of {self.plan.starts}"

    def ends_before(self, start: int) -> bool:
        """Return whether the time is up before a start; the results say so."""
        limits, budget = self.plan.limits, self.plan.budget
        if start and not self.is_over:
            self.start = start
            if limits is not None:
                again = [p for p in self.crew.programs if self.rows.open(p.setting, p.subject)]
                if self.spent() + ANOTHER + self.crew.timing(again) > limits.total:
                    self.end(self.spent())
            elif budget is not None and self.spent() > budget:
                self.end(budget)
        return self.is_over

    def weigh(self) -> None:
        """Refuse times that are too short to be real, such as those of a subject that reuses its answers."""
        for key, row in [*self.rows.rows.items()]:
            setting = Setting.of(row["setting"])
            about = tables.Context(None, results.ceiling(self.found, setting.precision), setting)
            part = tables.roofline(row, about) if row["rounds"] else None
            if part is not None and part > BEYOND:
                del self.rows.rows[key]
                why = f"a step took {tables.number(results.median(row))} ms, {part:,.0f} times as fast as the ceilings"
                self.rows.refuse(setting, row["subject"], f"{why} of this run allow: it does not do its work in each")

    def save(self) -> None:
        """Save the measurements so far."""
        self.found["rows"], self.found["refused"] = [*self.rows.rows.values()], [*self.rows.refused.values()]
        if self.references.accepted:
            self.found["accepted"] = self.references.accepted
        if self.out is not None:
            results.save(self.found, self.out)

    def one_start(self, start: int, asked: Sequence[tuple[Setting, str]]) -> None:
        """Start, compile, judge and time every program that has not been refused."""
        self.start, self.passes, crew = start, Counter(), self.crew
        if start:
            self.found["readings"].append({"start": start, **self.world.readings()})
        programs = [Program(*one) for one in asked if self.rows.open(*one)]
        if start or self.plan.limits is None:
            self.rng.shuffle(programs)
        order = {setting: number for number, setting in enumerate(dict.fromkeys(setting for setting, _ in asked))}
        # The slowest come first, so that all builders end at about the same time.
        programs.sort(key=lambda p: (order[p.setting], -self.rows.building(p.setting, p.subject)))
        crew.enter(start, programs)
        while not self.is_over:
            crew.collect(self.world.now())
            crew.stop_late()
            if self.references.failed and not self.references.ready and self.references.process is None:
                raise UserError(next(iter(self.references.failed.values())))
            if not self.is_over_budget():
                crew.begin()
            setting = crew.due()
            if setting is not None:
                self.time(setting)
            elif self.references.is_busy or any(p.compiles for p in crew.programs):
                crew.collect(crew.next_limit())
            else:
                break
        crew.close([*crew.lanes])

    def is_over_budget(self) -> bool:
        """Return whether no other setting may begin: the budget is used up, and at least one setting was measured."""
        budget, waiting = self.plan.budget, any(p.state == "waiting" for p in self.crew.programs)
        if budget is None or self.spent() <= budget or self.crew.active() or not self.rows.rows or not waiting:
            return False
        self.end(budget)
        return True

    def time(self, setting: Setting) -> None:
        """Warm up and time the ready programs of a setting, while nothing else works."""
        ready = [p for p in self.crew.programs if p.setting == setting and p.state == "ready"]
        compiling = [p for p in self.crew.programs if p.compiles]
        working = [self.crew.lane(p).process for p in compiling]
        if self.references.process is not None and self.references.is_busy:
            working.append(self.references.process)
        paused = self.world.now()
        for process in working:
            process.pause()
        try:
            timed = self.rounds(setting, [p for p in ready if self.warm(p)])
            self.ceilings(ready)
        finally:
            for process in working:
                process.resume()
        for program in compiling:
            program.paused += self.world.now() - paused
        self.release(ready, timed)
        self.save()

    def rounds(self, setting: Setting, timed: list[Program]) -> list[Program]:
        """Time each program once in every round, and return those that answered until the end."""
        # A program that is timed at another moment of the same start has its own rounds, which are not paired with
        # others.
        first = self.passes[setting.name] * self.plan.rounds
        self.passes[setting.name] += 1
        single = setting.batch == 1 and setting.mode == "inference"
        for number in range(first, first + self.plan.rounds):
            for program in self.rng.sample(timed, len(timed)):
                if self.is_over:
                    return timed
                self.tell(f"start {self.start + 1}, round {number + 1}, {setting}: {program.subject}")
                began = self.spent()
                answer = self.ask(program, "round", seconds=self.plan.seconds, single=single)
                if "error" in answer:
                    timed.remove(program)
                    continue
                row = self.rows.row(setting, program.subject)
                block: BlockRow = {"start": self.start, "round": number, "steps": answer["steps"], "ms": answer["ms"]}
                if setting.device == "gpu":
                    block["from"], block["to"] = round(began, 2), round(self.spent(), 2)
                    block["events"] = answer.get("events")
                row["rounds"].append(block)
                row["each"] += answer["each"]
                if number == first and (seen := self.world.gpu()):  # right after its block, before the clocks drop
                    self.found.setdefault("gpu", []).append({"start": self.start, "setting": setting.name, **seen})
                self.save()
        return timed

    def warm(self, program: Program) -> bool:
        """Warm up a program that was built, and return whether that worked."""
        if self.is_over:
            return False
        answer = self.ask(program, "warm", most=self.plan.warm)
        if "error" not in answer:
            start = self.rows.row(program.setting, program.subject)["starts"][-1]
            start["warm_steps"], start["calm"] = answer["warm_steps"], answer["calm"]
            start["host_ms"] = answer["host_ms"]
        return "error" not in answer

    def ask(self, program: Program, do: str, **arguments: object) -> dict[str, Any]:
        """Give a command and wait for its answer; refuse the program if the answer is an error."""
        process, limits = self.crew.lane(program).process, self.plan.limits
        if process.failed:
            return {"error": process.failed}
        process.send(do, **arguments)
        now, until = self.world.now(), self.limited(ANSWER if limits is None else limits.answer)
        answers = self.world.wait([process], until)
        if answers and "error" not in answers[0][1]:
            return answers[0][1]
        why = answers[0][1]["error"] if answers else f"gave no answer within {until - now:.0f} s"
        if not answers:
            process.stop(why)
            if limits is not None and until == self.begun + limits.total:
                self.end(limits.total)
                why = "stopped: the time ran out before it was timed"
            elif limits is not None:
                self.note_silence(program)
        if not self.crew.tries_alone(program, why) and not (
            self.is_over and self.rows.has_rounds(program.setting, program.subject)
        ):
            self.rows.refuse(program.setting, program.subject, why)
        return {"error": why}

    def note_silence(self, program: Program) -> None:
        """Leave out the other programs of a subject that gave no answer twice: each would cost the others time."""
        self.silent[program.subject] += 1
        if self.silent[program.subject] < SILENT:
            return
        for other in self.crew.programs:
            if other.subject == program.subject and other is not program and other.state != "done":
                self.crew.stop(other, f"left out: {program.subject} gave no answer in {SILENT} other settings")

    def release(self, programs: Sequence[Program], timed: Sequence[Program]) -> None:
        """Release programs, as many at a time as may compile, and record their reports of memory and work."""
        left, waiting = [] if self.is_over else [*programs], dict[Process, Program]()
        until = self.limited(ANSWER if self.plan.limits is None else self.plan.limits.answer)
        while left or waiting:
            while left and len(waiting) < self.crew.builders:
                program = left.pop(0)
                process = self.crew.lane(program).process
                if not process.failed:
                    process.send("release", cost="cost" not in self.rows.row(program.setting, program.subject))
                    waiting[process] = program
            answers = self.world.wait([*waiting], until) if waiting else []
            for process, told in answers:
                program = waiting.pop(process, None)
                if program is not None and program in timed and "error" not in told:
                    row = self.rows.row(program.setting, program.subject)
                    if "peak_bytes" in told:
                        row["peak_bytes"] = told["peak_bytes"]
                    if "cost" in told:
                        row["cost"] = told["cost"]
            if waiting and not answers:
                break
        for process in waiting:
            process.stop("did not release its program")
        for program in programs:
            self.crew.leave(self.crew.lane(program), program)

    def limited(self, seconds: float) -> float:
        """Return the end of this many seconds, or the end of the whole time if that is earlier."""
        limits = self.plan.limits
        until = self.world.now() + seconds
        return until if limits is None else min(until, self.begun + limits.total)

    def ceilings(self, programs: Sequence[Program]) -> None:
        """Measure what the device can do, once per start and framework."""
        if self.is_over or any(one["start"] == self.start for one in self.found["ceilings"]):
            return
        for framework in ("pytorch", "jax"):
            own = [p for p in programs if SUBJECTS[p.subject].framework == framework]
            process = next((lane.process for p in own if not (lane := self.crew.lane(p)).process.failed), None)
            for precision in dict.fromkeys(setting.precision for setting in self.plan.settings) if process else ():
                assert process is not None
                process.send("ceilings", device=self.plan.settings[0].device, precision=precision)
                answers = self.world.wait([process], self.limited(ANSWER if self.plan.limits is None else CEILING))
                if not answers:
                    process.stop("measuring the ceilings took too long")
                    break
                reached = answers[0][1]
                if "error" not in reached:
                    row: CeilingRow = {
                        "start": self.start,
                        "framework": framework,
                        "precision": precision,
                        "flops": reached["flops"],
                        "bytes": reached["bytes"],
                    }
                    self.found["ceilings"].append(row)
