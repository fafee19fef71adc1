"""Processes that share cases: forked from one that has imported all libraries, watched, and replaced when they die.

Each case begins with a line to the parent and ends with another, so the parent knows in which case a process died. A
process that hangs in code that no signal interrupts is killed: after three times the CPU time that a command may take,
or after ten minutes of the clock.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from . import judge

Job = tuple[str, int]  # a format, and the index of a case
Result = dict[str, Any]
Work = Callable[[Path, Job], Result]
HANGS, ROOM = 600.0, 6 << 30  # seconds; bytes of address space that a process may take besides


def forked(action: Callable[[], bytes]) -> bytes:
    """Return what an action gives in a process of its own: its threads end with it."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(action())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("fuzz: a process that makes the first files failed")
    return content


@dataclass
class Worker:
    """A process with its part of the jobs."""

    jobs: list[Job]
    pid: int = 0
    pipe: int = -1
    rest: bytes = b""
    done: int = 0
    began: float = 0.0
    cpu: float = 0.0


def share(
    jobs: list[Job], work: Work, workers: int, minutes: float | None = None, sort: Callable[[Job], Any] | None = None
) -> Iterator[tuple[Job, Result]]:
    """Run all jobs; give each with its result.

    Args:
        work: told an empty folder and a job, in a process of its own.
        minutes: after them no further job begins.
        sort: jobs of one kind go to one process, in their order; else they are dealt out in turn.
    """
    end = time.monotonic() + minutes * 60 if minutes else None
    kinds = sorted({sort(job) for job in jobs}) if sort else []
    parts = [
        [j for j in jobs if kinds.index(sort(j)) % workers == i] if sort else jobs[i::workers] for i in range(workers)
    ]
    with selectors.DefaultSelector() as selector:
        for part in parts:
            if part:
                _start(selector, Worker(part), work, end)
        while selector.get_map():
            for key, _ in selector.select(1.0):
                yield from _heard(selector, key.data, work, end)
            for key in list(selector.get_map().values()):
                _watch(key.data)


def _start(selector: selectors.BaseSelector, worker: Worker, work: Work, end: float | None) -> None:
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    worker.pid = os.fork()
    if worker.pid == 0:
        try:
            os.close(read)
            _serve(write, worker.jobs[worker.done :], work, end)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        finally:
            os._exit(0)
    os.close(write)
    worker.pipe, worker.rest, worker.began, worker.cpu = read, b"", time.monotonic(), 0.0
    selector.register(read, selectors.EVENT_READ, worker)


def _serve(pipe: int, jobs: list[Job], work: Work, end: float | None) -> None:
    """Do the jobs of one process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    used = judge._status("VmSize")
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place()) as name, judge.watched():
        folder = Path(name)
        for job in jobs:
            if end is not None and time.monotonic() > end:
                return
            _tell(pipe, {"begin": time.process_time()})
            _tell(pipe, work(judge.emptied(folder / "case"), job))


def place() -> str | None:
    """Return a folder in memory, where the system has one: no disk waits for what is thrown away."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _tell(pipe: int, message: Result) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]


def _heard(
    selector: selectors.BaseSelector, worker: Worker, work: Work, end: float | None
) -> Iterator[tuple[Job, Result]]:
    data = os.read(worker.pipe, 1 << 16)
    *lines, worker.rest = (worker.rest + data).split(b"\n")
    for line in lines:
        message = json.loads(line)
        worker.began = time.monotonic()
        if "begin" in message:
            worker.cpu = message["begin"]
        else:
            worker.done += 1
            yield worker.jobs[worker.done - 1], message
    if data:
        return
    selector.unregister(worker.pipe)
    os.close(worker.pipe)
    _, status = os.waitpid(worker.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code and worker.done < len(worker.jobs):
        worker.done += 1
        yield worker.jobs[worker.done - 1], {"faults": [f"the process ended with {code}"], "died": True}
        if worker.done < len(worker.jobs):
            _start(selector, worker, work, end)


def _watch(worker: Worker) -> None:
    """Kill a process whose case goes on for too long."""
    try:
        times = psutil.Process(worker.pid).cpu_times()
    except psutil.Error:
        return
    if times.user + times.system - worker.cpu > 3 * judge.CPU + 30 or time.monotonic() - worker.began > HANGS:
        os.kill(worker.pid, signal.SIGKILL)
