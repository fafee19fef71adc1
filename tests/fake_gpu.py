"""A machine with a GPU that exists in a clock alone: programs compile and run there in no real time.

It asserts what a measurement must keep: one program works while it is timed, and nothing else does; no more programs
compile at a time than there are builders; and memory that is not there gives "out of memory", as a GPU does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import expected
from benchmarks.measure.plan import case_of
from benchmarks.measure.process import Process, World
from benchmarks.subjects import memory_estimates
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting

XLA, INDUCTOR, AUTOTUNE = 45.0, 60.0, 180.0  # seconds of compiling
START, CACHED, EAGER = (
    8.0,
    6.0,
    5.0,
)  # seconds of importing, of building what is in a cache, of cuDNN's search
REFERENCE = 15.0


class Killed(BaseException):
    """The command was killed: nothing after this is done, as with SIGKILL."""


def compiling(subject: str) -> float:
    """Return how many seconds a program takes to compile."""
    row = SUBJECTS[subject]
    if row.framework == "jax":
        return XLA
    options = row.options.compile
    return EAGER if options is None else AUTOTUNE if options == "max-autotune" else INDUCTOR


@dataclass(eq=False)
class FakeProcess(Process):
    """A process whose answers come at their times."""

    world: FakeWorld
    subject: str
    failed: str | None = None
    due: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    setting: Setting | None = None
    compiles: bool = False
    paused: float | None = None
    sent: float = 0.0
    taken: float = 0.0

    def send(self, do: str, **arguments: Any) -> None:
        if not self.failed:
            self.world.command(self, do, arguments)

    def later(self, seconds: float, **answer: Any) -> None:
        self.due.append((self.world.time + seconds, answer))

    def stop(self, why: str) -> None:
        self.failed = why
        self.end()

    def end(self) -> None:
        self.due, self.compiles, self.taken = [], False, 0.0

    def pause(self) -> None:
        self.paused = self.world.time

    def resume(self) -> None:
        assert self.paused is not None
        self.due = [(at + self.world.time - self.paused, answer) for at, answer in self.due]
        self.paused = None

    def leave(self) -> None:
        pass

    def close(self) -> None:
        self.end()


class FakeWorld(World):
    """The machine.

    Args:
        faults: what goes wrong, by subject: hang, die or memory (in its first step), or hang-timed (in a round); of the
            "reference" hang or die, or hang-2 or die-2 in the second one.
        memory: bytes of the GPU.
        killed: seconds after which the command is killed.
        factor: by which programs take more memory than is estimated.
        cache: what was compiled before, shared by the worlds of several stages.
    """

    def __init__(
        self,
        folder: Path,
        builders: int,
        faults: dict[str, str] | None = None,
        memory: float = 79e9,
        killed: float = float("inf"),
        factor: float = 1.0,
        cache: set[tuple[str, str]] | None = None,
        seconds: Callable[[str], float] = compiling,
        begun: float = 0.0,
    ) -> None:
        self.compilers = folder
        self.folder, self.builders, self.faults, self.memory = folder, builders, faults or {}, memory
        self.killed, self.factor, self.seconds = killed, factor, seconds
        self.time, self.cache = begun, set() if cache is None else cache
        self.processes: list[FakeProcess] = []
        self.rounds: list[tuple[float, str, str]] = []  # when which program was timed
        self.computed = 0  # references
        self.most = 0  # programs that compiled at a time

    def now(self) -> float:
        return self.time

    def launch(self, subject: str) -> FakeProcess:
        process = FakeProcess(self, subject)
        self.processes.append(process)
        process.later(START, ready=True, start_seconds=START)
        return process

    def references(self) -> FakeProcess:
        process = FakeProcess(self, "reference")
        self.processes.append(process)
        self.imported = self.time + START
        return process

    def command(self, process: FakeProcess, do: str, arguments: dict[str, Any]) -> None:
        getattr(self, f"_{do}")(process, **arguments)

    def _reference(self, process: FakeProcess, setting: Setting, changes: dict[str, Any]) -> None:
        others = sum(one.taken for one in self.processes if one is not process)
        exact = expected.exact_file(setting, changes, self.folder)
        process.taken = memory_estimates.reference(setting, 4 if exact.exists() else 8)
        assert others + process.taken <= self.memory, "the reference would not fit"
        place = expected.place_of(setting, changes, self.folder)
        place.mkdir(parents=True)
        (place / expected.BOUNDS).touch()
        exact.touch()
        seconds = max(0.0, self.imported - self.time) + REFERENCE
        self.computed += 1
        fault, _, which = self.faults.get("reference", "").partition("-")
        if int(which or 1) != self.computed:
            fault = ""
        if fault == "die":
            process.later(seconds, error="its process ended: SIGSEGV", ended=-11)
        elif fault != "hang":
            process.later(seconds, done=case_of(setting, changes))

    def _prepare(self, process: FakeProcess, setting: dict[str, Any], changes: dict[str, Any] | None = None) -> None:
        if changes is not None:
            self._reference(process, Setting.of(setting), changes)
            return
        process.setting, process.compiles = Setting.of(setting), True
        process.sent, self.most = self.time, max(self.most, sum(one.compiles for one in self.processes))
        assert self.most <= self.builders
        key, fault = (process.setting.name, process.subject), self.faults.get(process.subject)
        seconds = CACHED if key in self.cache else self.seconds(process.subject)
        process.taken = self.factor * memory_estimates.need(process.setting)
        others = [one for one in self.processes if one is not process]
        if fault == "hang":
            return
        if fault == "die":
            process.later(seconds / 2, error="its process ended: SIGSEGV", ended=-11)
        elif fault == "memory" or process.taken + sum(one.taken for one in others) > self.memory:
            process.later(seconds, error="out of memory")
        else:
            self.cache.add(key)
            at_rest = self.factor * memory_estimates.rest(process.setting, SUBJECTS[process.subject])
            told = {"build_seconds": 0.0, "import_seconds": START}
            gate = {"ok": True, "worst": 0.5, "text": "", "tensor": "logits", "distance": 0.0, "bound": 1.0}
            process.later(seconds, gate=gate, memory=[process.taken, at_rest], **told)

    def _warm(self, process: FakeProcess, most: int) -> None:
        self._alone(process)
        process.later(1.0, warm_steps=5, calm=True, host_ms=0.1)

    def _round(self, process: FakeProcess, seconds: float, single: bool) -> None:
        self._alone(process)
        assert process.setting is not None
        self.rounds.append((self.time, process.setting.name, process.subject))
        if self.faults.get(process.subject) != "hang-timed":
            ms = 10.0 + len(process.subject) / 10
            process.later(1.4 * seconds, steps=5, ms=ms, each=[], thrown=0, events=ms)

    def _release(self, process: FakeProcess, cost: bool) -> None:
        process.later(0.5, peak_bytes=int(process.taken), cost={})

    def _ceilings(self, process: FakeProcess, device: str, precision: str) -> None:
        process.later(0.2, flops=8e14, bytes=3e12)

    def _alone(self, process: FakeProcess) -> None:
        """Check that nothing computes beside a program that is timed."""
        working = [one for one in self.processes if one.due and one.paused is None]
        assert not [one.subject for one in working if one is not process]

    def wait(self, processes: Sequence[Process], until: float | None) -> list[tuple[Process, dict[str, Any]]]:
        pending = [(at, one) for one in processes if isinstance(one, FakeProcess) for at, _ in one.due]
        first = min((at for at, _ in pending), default=float("inf"))
        end = float("inf") if until is None else max(until, self.time)
        assert min(first, end) < float("inf"), "it would wait for ever"
        self.time = max(self.time, min(first, end))
        if self.time >= self.killed:
            raise Killed
        found: list[tuple[Process, dict[str, Any]]] = []
        for one in processes:
            assert isinstance(one, FakeProcess)
            for at, answer in [*one.due]:
                if at <= self.time:
                    one.due.remove((at, answer))
                    one.compiles = False
                    if "ended" in answer:
                        one.failed = answer["error"]
                        one.taken = 0.0
                    elif "done" in answer:
                        one.taken = 0.0
                    elif "gate" in answer:
                        answer["first_step_seconds"] = at - one.sent  # as the process sees it, pauses included
                        one.taken = answer["memory"][1]
                    elif "error" in answer:
                        one.taken = 0.0
                    found.append((one, dict(answer)))
        return found

    def readings(self) -> dict[str, Any]:
        return {"time": "", "busy": 0.0, "gpu": self.gpu()}

    def gpu(self) -> dict[str, str]:
        return {"clocks.sm": "1755 MHz", "power.draw": "512.1 W", "temperature.gpu": "48"}
