"""The process of one subject: builds it, passes it to the gate, and times it on command.

Each input line is a command in JSON, and each output line its answer. What libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl


CONTEXT = 1 << 29  # bytes of device memory that a framework takes besides its arrays


class Worker:
    """Holds a subject built for one setting at a time, and the device's clock if there is one."""

    timer: Any = None
    peak = 0

    def __init__(self, subject: str, folder: Path) -> None:
        from benchmarks.subjects.roster import SUBJECTS

        self.subject, self.folder = SUBJECTS[subject], folder
        self.run: Any = None
        self.at, self.seconds = 0, 0.0
        begin = time.perf_counter()
        module, _, function = self.subject.build.partition(":")
        self.build = getattr(importlib.import_module(f"benchmarks.subjects.{module}"), function)
        for name in IMPORTED[self.subject.framework][self.subject.options.compile is not None]:
            importlib.import_module(name)  # several processes do this at a time, even if they build one at a time
        self.imported = time.perf_counter() - begin

    def prepare(self, setting: dict[str, Any]) -> dict[str, Any]:
        """Build the subject, take its first step, and judge that step."""
        from benchmarks.machine import cuda_events, process_memory
        from benchmarks.measure import expected, gate
        from benchmarks.subjects.case import NetworkCase
        from benchmarks.subjects.settings import OWN, Setting

        process_memory.forget()

        chosen = Setting.of(setting)
        if chosen.device == "gpu" and self.subject.framework == "jax":
            require_gpu()
        if OWN in chosen.network:
            from benchmarks.measure import own_expected

            case = own_expected.read_case(chosen, self.folder)
        else:
            case = expected.read_case(chosen, self.subject.changes, self.folder, self.subject.folded)
        begin = time.perf_counter()
        run = self.build(case, self.subject.options)
        built = time.perf_counter() - begin
        begin = time.perf_counter()
        result = run.step(0)
        run.wait(result)
        first = time.perf_counter() - begin
        found = run.numbers(result)
        if isinstance(case, NetworkCase) and chosen.mode == "training":
            found |= gate.parameter_change(run.weights(), case.weights)
        verdict = gate.judge(found, case.expected, case.bounds)
        answer = {
            "import_seconds": self.imported,
            "build_seconds": built,
            "first_step_seconds": first,
            "gate": verdict.__dict__ | {"text": str(verdict)},
        }
        if options := getattr(run, "options", lambda: None)():
            answer["options"] = options
        self.run, self.peak = run if verdict.ok else None, 0
        if chosen.device == "gpu" and verdict.ok:
            answer["memory"] = [size + CONTEXT for size in run.reserved()]
            self.timer, why = cuda_events.timer()
            answer |= {"no_events": why} if why else {}
        return answer

    def warm(self, most: int) -> dict[str, Any]:
        """Run the subject that `prepare` built until it is warm, for at most this many blocks."""
        from benchmarks.measure import clock

        self.at, calm, self.seconds = clock.warm(self.run, most=most)
        host = clock.host(self.run) if self.run.asynchronous else None
        self.run.rest()
        return {"warm_steps": self.at, "calm": calm, "host_ms": host}

    def round(self, seconds: float, single: bool) -> dict[str, Any]:
        """Time a block of steps, after one step that is not timed: while it waited, others used caches and memory."""
        from benchmarks.machine import cuda_events
        from benchmarks.measure import clock
        from benchmarks.subjects.settings import SETS

        self.run.wait(self.run.step(self.at % SETS))
        self.at += 1
        steps = clock.count(self.seconds, seconds)
        try:
            found, thrown = clock.again(self.run, steps, self.at, single, timer=self.timer)
        except cuda_events.DriverError as error:  # the host's clock goes on alone
            print(f"no event timers from here on: {error}", file=sys.stderr)
            self.timer = None
            found, thrown = clock.again(self.run, steps, self.at, single)
        self.at += steps
        self.peak = self.memory()  # before anything else is measured in this process
        self.run.rest()
        each = [t * 1e3 for t in found.each]
        return {"steps": steps, "ms": found.ms, "each": each, "thrown": thrown, "events": found.events}

    def release(self, cost: bool) -> dict[str, Any]:
        """Release the setting; report its memory and, if asked, the framework's analysis of the program."""
        told = {"peak_bytes": self.peak or self.memory()} if self.run is not None else {}
        if cost and self.run is not None:
            told["cost"] = self.run.cost()
        self.run = None
        gc.collect()
        return told

    def memory(self) -> int:
        """Return the subject's peak in bytes: of the device's memory, or of this process's memory."""
        from benchmarks.machine import process_memory

        return self.run.memory() or process_memory.peak()

    def ceilings(self, device: str, precision: str) -> dict[str, float]:
        steps = importlib.import_module(f"benchmarks.subjects.{CEILINGS[self.subject.framework]}")
        return steps.ceilings(device, precision)


# What the first step imports, without and with `torch.compile`.
IMPORTED = {
    "pytorch": (("torch.fx.experimental.symbolic_shapes",), ("torch.fx.experimental.symbolic_shapes", "torch._dynamo")),
    "jax": ((), ()),
}
CEILINGS = {"pytorch": "torch_steps", "jax": "jax_steps"}


def described(error: BaseException) -> str:
    """The first line of an error, with the first line of its cause: a package may fail because of another package."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = [f"{type(one).__name__}: {str(one).strip()}".partition("\n")[0][:300] for one in (error, first)]
    return lines[0] if first is error else ", from ".join(lines)


def answer(worker: Worker, command: dict[str, Any]) -> dict[str, Any]:
    """One command; an error of a subject is an answer, and does not end the run."""
    from benchmarks.measure.clock import ClockError
    from ports.errors import UserError, is_out_of_memory

    try:
        return getattr(worker, command.pop("do"))(**command)
    except (ClockError, UserError) as error:
        traceback.print_exc()
        return {"error": str(error)}
    except Exception as error:  # whatever a framework raises
        if is_out_of_memory(error):
            return {"error": "out of memory"}
        traceback.print_exc()
        return {"error": described(error)}


def require_gpu() -> None:
    """Raise if JAX has no GPU: it would silently compute on the CPU.

    Raises:
        UserError: JAX's default backend is another one.
    """
    import jax

    from ports.errors import UserError

    if jax.default_backend() != "gpu":
        raise UserError(f"JAX sees no GPU (its backend is {jax.default_backend()}); install its build for CUDA")


def end_with_parent() -> None:
    """Make Linux end this process when its parent ends, even while it is paused."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def since_start() -> float:
    """Return the seconds since this process was started, its interpreter's own start included."""
    import psutil

    return time.time() - psutil.Process().create_time()


def main(subject: str, folder: str) -> None:
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that libraries print must not mix with the answers

    def say(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        worker = Worker(subject, Path(folder))
    except Exception as error:  # a package that does not import here
        traceback.print_exc()
        say({"error": described(error)})
        return
    say({"ready": True, "start_seconds": since_start()})
    for line in sys.stdin:
        say(answer(worker, json.loads(line)))
    os._exit(0)  # end at once: shutting a framework down takes a second


if __name__ == "__main__":
    main(*sys.argv[1:3])
