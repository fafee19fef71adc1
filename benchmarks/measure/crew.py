"""The processes of one start: which programs compile now, which have room to start, and which are ready to be timed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.measure.device_memory import DeviceMemory
from benchmarks.measure.plan import Limits, Program, Rows, RunPlan
from benchmarks.measure.process import Process, World
from benchmarks.measure.references import References
from benchmarks.reporting.schema import StartRow
from benchmarks.subjects.settings import Setting

OUT_OF_MEMORY = "out of memory"


@dataclass(eq=False)
class Lane:
    """A subject's process, and the program that it works on."""

    process: Process
    program: Program | None = None
    is_ready: bool = False
    start_seconds: float = 0.0


class Crew:
    """Programs and their processes.

    Without limits a subject has one process for all settings, and a setting begins when the one before it is timed.
    """

    def __init__(
        self,
        plan: RunPlan,
        world: World,
        rows: Rows,
        references: References,
        tell: Callable[[str], None],
        begun: float,
    ) -> None:
        self.plan, self.world, self.rows = plan, world, rows
        self.references, self.tell, self.begun = references, tell, begun
        self.start = 0
        self.programs: list[Program] = []
        self.lanes: dict[Hashable, Lane] = {}
        self.memory = DeviceMemory(plan.limits and plan.limits.memory, references)
        self.alone: set[tuple[str, str]] = set()  # programs that ran out of memory while others used it

    def enter(self, start: int, programs: Sequence[Program]) -> None:
        """Begin a start with these programs, in this order."""
        self.start = start
        for program in programs:
            file = self.compiled(program)  # an earlier run may have measured its memory
            told = json.loads(file.read_text()).get("memory") if file.exists() else None
            if told:
                self.memory.told.setdefault(program.key, (told[0], told[1]))
        self.programs = sorted(programs, key=lambda p: p.key in self.alone)
        for program in self.programs:
            program.alone = program.key in self.alone

    # Which programs may start or compile now, and which references may be computed.

    def begin(self) -> None:
        """Start and build programs, and compute references, as far as there is room."""
        # Without limits a process stays alive for all settings of its subject. If no waiting program can use any of
        # these processes, they make room for the next group.
        if self.plan.limits is None and not self.active():
            waiting = [p.subject for p in self.programs if p.state == "waiting"]
            if not any(subject in self.lanes for subject in waiting):
                self.close([*self.lanes])
        # A program without a reference could never be judged.
        for case, why in self.references.failed.items():
            for program in self.programs:
                if program.case == case and program.state in ("waiting", "started"):
                    self.stop(program, why)
        setting = self.references.next()
        if setting is not None and self.memory.has(self.references.need(), self.programs):
            self.references.begin()
        for program in self.programs:
            if program.state == "waiting" and self.may_start(program):
                self.launch(program)
            if program.state == "started" and self.may_build(program):
                self.build(self.lane(program), program)

    def active(self) -> list[Program]:
        return [p for p in self.programs if p.state not in ("waiting", "done")]

    def may_start(self, program: Program) -> bool:
        """Return whether a program may get a process, a new one or an existing one."""
        limits, active = self.plan.limits, self.active()
        # A program that is ready only waits for its turn; every other program uses a core.
        unbuilt = sum(p.state != "ready" for p in active)
        if limits is not None:  # a few more than may build at a time, because importing needs little
            return unbuilt < self.builders + max(1, self.builders // 2)
        lane = self.lanes.get(program.subject)
        if unbuilt >= self.builders or (lane.program if lane else len(self.lanes) >= self.plan.alive):
            return False
        # Nothing else computes while a program is timed: references come first, then one setting at a time.
        return self.references.process is None and all(p.setting == program.setting for p in active)

    def may_build(self, program: Program) -> bool:
        """Return whether a program has its reference, a builder and memory."""
        building = sum(p.state == "building" for p in self.programs)
        if program.case not in self.references.ready or building >= self.builders:
            return False
        using = [p for p in self.programs if p.uses_memory]
        # A program that ran out of memory while others used it gets the whole device for itself.
        if program.alone or any(p.alone for p in using):
            return not using and not self.references.is_busy
        most, _ = self.memory.need(program)
        # The next reference goes first: others wait for it.
        following = self.references.need() if self.references.next() is not None else 0.0
        return self.memory.has(most + following, self.programs)

    @property
    def builders(self) -> int:
        return self.plan.builders if self.start == 0 else self.plan.later_builders

    # Processes.

    def key(self, program: Program) -> Hashable:
        return program.subject if self.plan.limits is None else program.key

    def lane(self, program: Program) -> Lane:
        return self.lanes[self.key(program)]

    def launch(self, program: Program) -> None:
        """Start a process for a program, or hand the program to its subject's process."""
        key = self.key(program)
        lane = self.lanes.get(key)
        if lane is not None and lane.process.failed:  # it died in another setting
            self.close([key])
            lane = None
        program.since = self.world.now()
        if lane is None:
            self.tell(f"starting {program.subject}")
            lane = self.lanes[key] = Lane(self.world.launch(program.subject))
        lane.program, program.state = program, "starting"
        if lane.is_ready:
            program.state = "started"

    def build(self, lane: Lane, program: Program) -> None:
        self.tell(f"start {self.start + 1} of {self.plan.starts}, {program.setting}: building {program.subject}")
        program.state, program.since, program.paused = "building", self.world.now(), 0.0
        lane.process.send("prepare", setting=program.setting.asdict())

    def collect(self, until: float | None) -> None:
        """Take the answers of programs that compile; it may wait for the first one."""
        lanes = {lane.process: lane for lane in self.lanes.values() if lane.program and lane.program.compiles}
        processes = [*lanes, *([self.references.process] if self.references.process is not None else [])]
        for process, answer in self.world.wait(processes, until) if processes else ():
            if process is self.references.process:
                self.references.says(answer)
            elif process in lanes and (program := lanes[process].program) is not None:
                self.arrived(lanes[process], program, answer)

    def arrived(self, lane: Lane, program: Program, answer: dict[str, Any]) -> None:
        """Continue with a program whose process has answered."""
        if "error" in answer:
            self.failed(lane, program, answer["error"])
        elif program.state == "starting":
            lane.is_ready, lane.start_seconds, program.state = True, answer["start_seconds"], "started"
        else:
            self.built(lane, program, answer)

    def failed(self, lane: Lane, program: Program, why: str) -> None:
        """Refuse a program that could not be built, or let it try again."""
        if not self.tries_alone(program, why):
            self.rows.refuse(program.setting, program.subject, why)
        starting = program.state == "starting"
        self.leave(lane, program)
        if starting and self.plan.limits is None:  # a package that does not import: no other setting can use it
            self.close([program.subject])

    def tries_alone(self, program: Program, why: str) -> bool:
        """Return whether to try a program again alone: other programs may have used the memory."""
        if why != OUT_OF_MEMORY or self.plan.limits is None or program.alone:
            return False
        self.alone.add(program.key)
        self.programs.append(Program(program.setting, program.subject, alone=True))
        return True

    def built(self, lane: Lane, program: Program, answer: dict[str, Any]) -> None:
        """Keep a program that is built and judged to be right."""
        verdict = answer.pop("gate")
        if not verdict["ok"]:
            self.rows.refuse(program.setting, program.subject, f"no parity: {verdict['text']}")
            self.leave(lane, program)
            return
        if memory := answer.get("memory"):
            self.memory.told[program.key] = (memory[0], memory[1])
        row = self.rows.add(program.setting, program.subject, verdict)
        # The process cannot see that it was paused while another program was timed.
        answer["first_step_seconds"] = max(0.0, answer["first_step_seconds"] - program.paused)
        start = cast("StartRow", {"start": self.start, "start_seconds": lane.start_seconds, **answer})
        cold = self.cold(program, start)
        if cold != start and not row["starts"]:
            row["starts"].append({**cold, "cold": True, "start": -1})  # from an earlier run with this folder
        row["starts"].append({**start, "cold": cold == start})
        program.state = "ready"

    def cold(self, program: Program, start: StartRow) -> StartRow:
        """Return the start in which a program was compiled: this one, or an earlier one that the folder records.

        The folder also has the compilers' caches, so that each program is compiled once.
        """
        file = self.compiled(program)
        if file.exists():
            return json.loads(file.read_text())
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.part")
        unfinished.write_text(json.dumps(start))
        unfinished.rename(file)
        return json.loads(json.dumps(start))

    def compiled(self, program: Program) -> Path:
        return self.world.compilers / "compiled" / re.sub(r"[^\w.=@-]+", "_", "-".join(program.key))

    def leave(self, lane: Lane, program: Program) -> None:
        """Release a program; its process ends if no other setting needs it."""
        program.state, lane.program = "done", None
        if self.plan.limits is not None:
            self.close([program.key])

    def close(self, keys: Sequence[Hashable]) -> None:
        """End processes; tell all of them before waiting for the first."""
        lanes = [self.lanes.pop(key) for key in keys]
        for lane in lanes:
            if lane.program is not None and lane.program.compiles:  # it does not listen
                lane.process.stop("the run ended")
            lane.process.leave()
        for lane in lanes:
            lane.process.close()

    # The programs that are ready, and those that have taken too long.

    def due(self) -> Setting | None:
        """Return the setting to time now: none of its programs compiles, or none can compile before it is timed."""
        # The programs of a setting are timed in turn, so the setting waits for those that still compile, until
        # `patience` ends.
        fresh = [p for p in self.programs if p.compiles and self.has_patience(p)]
        is_busy = bool(fresh) or self.references.is_busy
        for setting in dict.fromkeys(p.setting for p in self.programs if p.state == "ready"):
            ours = [p for p in self.programs if p.setting == setting]
            open_ones = [p for p in ours if p.state in ("waiting", "started")]
            # It waits for programs that have not begun only while something runs that will give them a core or memory.
            waits = is_busy and any(not self.is_blocked(p) for p in open_ones)
            if not waits and not any(p in fresh for p in ours):
                return setting
        return None

    def is_blocked(self, program: Program) -> bool:
        """Return whether a program has no memory until others have been timed."""
        return program.alone or (
            program.state == "started"
            and program.case in self.references.ready
            and not self.memory.has(self.memory.need(program)[0], self.programs, at_rest=True)
        )

    def has_patience(self, program: Program) -> bool:
        """Return whether the other programs of its setting wait for one that compiles."""
        return self.plan.limits is None or self.compiling(program) < self.plan.limits.patience

    def compiling(self, program: Program) -> float:
        """Return how many seconds a program has been starting and compiling."""
        return self.world.now() - program.since - program.paused

    def timing(self, programs: Sequence[Program]) -> float:
        """Estimate the seconds that it takes to warm, time and release programs."""
        return len(programs) * (1.5 + 1.5 * self.plan.rounds * self.plan.seconds)

    def compile_until(self, limits: Limits) -> float:
        """Return when compiling must end, so that there is time left to time the ready programs."""
        # At least three fifths of the time are for compiling, or the programs of a slow compiler would never be timed.
        left = self.timing([p for p in self.programs if p.state in ("building", "ready")])
        return self.begun + limits.total - min(left, 0.4 * limits.total)

    def next_limit(self) -> float | None:
        """Return when a program must be stopped, or a setting timed without waiting for the rest."""
        limits = self.plan.limits
        if limits is None:
            return None
        begun = [p.since + p.paused for p in self.programs if p.compiles]
        times = [at + seconds for at in begun for seconds in (limits.patience, limits.build)]
        return min([self.compile_until(limits), *(at for at in times if at > self.world.now())])

    def stop_late(self) -> None:
        """Stop programs that have compiled for too long, and all that compile when the time for it is over."""
        limits = self.plan.limits
        if limits is None:
            return
        is_over = self.world.now() >= self.compile_until(limits)
        if is_over:
            seconds = self.world.now() - self.begun
            self.references.stop(f"stopped: its reference was not ready after {seconds:.0f} s")
        for program in self.programs:
            seconds = self.compiling(program)
            if program.compiles and (is_over or seconds >= limits.build):
                said = ", when the time for compiling was over" if is_over else ""
                self.stop(program, f"stopped: it still compiled after {seconds:.0f} s{said}")
            elif is_over and program.state in ("waiting", "started"):
                self.stop(program, self.references.failed.get(program.case, "left out: no time was left to compile it"))

    def stop(self, program: Program, why: str) -> None:
        """Stop a program, and refuse it if it has no figures from earlier starts."""
        if not self.rows.has_rounds(program.setting, program.subject):
            before = f"{OUT_OF_MEMORY} beside others; alone: " if program.alone else ""
            self.rows.refuse(program.setting, program.subject, before + why)
        # Its lane may already work on another setting of the subject, which must go on.
        lane = self.lanes.get(self.key(program))
        if lane is not None and lane.program is program:
            del self.lanes[self.key(program)]
            lane.process.stop(why)
        program.state = "done"
