"""The clock: measures the time of a subject's steps, and refuses times that cannot be right.

A block begins when the device is idle, and ends when the last step's result has arrived. Afterwards the clock reads the
results of all steps: a subject that returned before its work was done makes the clock wait there, and is refused. So is
one that compiled a program within a block. If the blocks of a subject do not settle while it warms up, a line below the
table names it. On a GPU the device's own clock runs, too (`machine/cuda_events.py`): a block is refused if the device
was still working when the framework said that it was done, or if the two clocks disagree.

On a busy machine other programs cause similar delays; BENCHMARKS_TRIES=20 lets a subject try that often.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from benchmarks.subjects.settings import SETS

# The fraction of a block that reading its results may take (they are small), and the smallest delay per step that
# counts, in seconds.
LATE, LEAST = 0.1, 0.0005

# By how much the device's clock may differ from the host's: a fraction of the block, and seconds.
APART, LEAST_APART = 0.02, 0.0005

# Warm-up: blocks of this many seconds, until three in a row agree within `CALM`, and the largest number of blocks.
WARM, CALM, MOST = 0.15, 0.1, 8

# How often a block is timed before its subject is refused.
TRIES = int(os.environ.get("BENCHMARKS_TRIES", "3"))


class ClockError(Exception):
    """A time that cannot be right; the message says why."""


@runtime_checkable
class BuiltSubject(Protocol):
    """A subject, built for one setting."""

    def step(self, which: int) -> Any:
        """Begins a step on this input set; it may return before the work is done."""

    def wait(self, result: Any) -> None:
        """Wait until it is done."""

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        """The logits, or the loss, by name."""
        ...

    def programs(self) -> int:
        """How many programs were compiled so far."""
        ...

    def rest(self) -> None:
        """Give back device memory that others need while this subject waits."""

    def memory(self) -> int:
        """Return its peak of device memory in bytes; 0 if it only uses its process's memory."""
        ...


@runtime_checkable
class DeviceClock(Protocol):
    """A clock of the device; see `benchmarks.machine.cuda_events`."""

    def begin(self) -> None: ...

    def end(self) -> tuple[float, float]: ...


@dataclass
class TimedBlock:
    """Steps that were timed together; `each` if every step was waited for, `events` from the device's clock."""

    steps: int
    seconds: float
    each: list[float] = field(default_factory=list)
    device_seconds: float | None = None

    @property
    def ms(self) -> float:
        return self.seconds / self.steps * 1e3

    @property
    def events(self) -> float | None:
        """Milliseconds a step, by the device's clock."""
        return None if self.device_seconds is None else self.device_seconds / self.steps * 1e3


def block(
    run: BuiltSubject, steps: int, first: int = 0, single: bool = False, timer: DeviceClock | None = None
) -> TimedBlock:
    """Time so many steps.

    Args:
        first: the input set of the first.
        single: wait for every step, as a program does that needs each answer.
        timer: the device's clock, where it has one.

    Raises:
        ClockError: the time is not the time of the work.
    """
    programs = run.programs()
    # All results are kept until the end: reading one within the block would make the clock wait for it.
    results, each = [], []
    if timer is not None:
        timer.begin()
    begin = time.perf_counter()
    for i in range(steps):
        at = time.perf_counter() if single else 0.0
        # Input sets take turns: repeating the last answer is not enough.
        results.append(run.step((first + i) % SETS))
        if single:
            run.wait(results[-1])
            each.append(time.perf_counter() - at)
    # A device works in order, so the last result arrives after all others.
    run.wait(results[-1])
    seconds = time.perf_counter() - begin
    elapsed = agreed(timer, seconds, steps) if timer is not None else None
    # Results that are ready are read at once. A delay here means that the work was not done when the clock stopped.
    begin = time.perf_counter()
    values = [run.numbers(result) for result in results]
    late = time.perf_counter() - begin
    if late > max(LATE * seconds, LEAST * steps):
        raise ClockError(
            f"{steps} steps were said to be done after {seconds * 1e3:.1f} ms, their results came {late * 1e3:.1f} ms "
            "later: it returns before its work is done"
        )
    # A compilation takes longer than thousands of steps; its block says nothing about them.
    if compiled := run.programs() - programs:
        raise ClockError(f"it compiled {compiled} program{'s' if compiled > 1 else ''} while it was timed")
    # Arithmetic on NaN or inf may be slower or faster than on finite numbers.
    if not all(np.isfinite(array).all() for value in values for array in value.values()):
        raise ClockError("its results are no longer finite")
    return TimedBlock(steps, seconds, each, elapsed)


def agreed(timer: DeviceClock, seconds: float, steps: int) -> float:
    """Return the seconds that the device's clock saw.

    Raises:
        ClockError: the device had not done its work, or the clocks disagree.
    """
    elapsed, late = timer.end()
    if late > max(LATE * seconds, LEAST * steps):
        raise ClockError(
            f"{steps} steps were said to be done after {seconds * 1e3:.1f} ms, the device worked {late * 1e3:.1f} ms "
            "longer: it returns before its work is done"
        )
    # The device's clock also ran during the delay; without the delay, both clocks saw the same block.
    if abs(elapsed - late - seconds) > max(APART * seconds, LEAST_APART):
        raise ClockError(
            f"the host's clock saw {seconds * 1e3:.2f} ms, the device's {(elapsed - late) * 1e3:.2f} ms: they disagree"
        )
    return elapsed - late


def again(
    run: BuiltSubject,
    steps: int,
    first: int = 0,
    single: bool = False,
    times: int = TRIES,
    timer: DeviceClock | None = None,
) -> tuple[TimedBlock, int]:
    """Time a block, and return it with the number of blocks that were discarded before it.

    Another program on the same processor causes a similar delay.

    Raises:
        ClockError: it failed too many times in a row.
    """
    for thrown in range(times):
        try:
            return block(run, steps, first, single, timer), thrown
        except ClockError:
            if thrown == times - 1:
                raise
    raise AssertionError


def warm(run: BuiltSubject, seconds: float = WARM, most: int = MOST) -> tuple[int, bool, float]:
    """Run until three blocks agree; return the number of steps, whether the blocks agree, and the seconds a step.

    Raises:
        ClockError: as `again`.
    """
    times: list[float] = []
    done, steps = 0, 1
    for _ in range(most):
        found, thrown = again(run, steps, done)
        # Discarded blocks have warmed it up, too; the next block continues with the following input set.
        done += (thrown + 1) * steps
        times.append(found.seconds / steps)
        # The first steps are slow, so the size of each block comes from the one before.
        steps = count(times[-1], seconds)
        if len(times) >= 3 and max(times[-3:]) <= (1 + CALM) * min(times[-3:]):
            break
    calm = len(times) >= 3 and max(times[-3:]) <= (1 + CALM) * min(times[-3:])
    return done, calm, statistics.median(times[-3:])


def count(step: float, seconds: float) -> int:
    """Return how many steps fill this time, at least one."""
    return max(1, min(10_000, round(seconds / max(step, 1e-7))))


def host(run: BuiltSubject, steps: int = 9, most: float = 0.3) -> float:
    """Return the milliseconds until the call of a step returns: the host's share.

    Args:
        most: seconds after which three steps are enough.
    """
    times, start = [], time.perf_counter()
    for i in range(steps):
        if len(times) >= 3 and time.perf_counter() - start > most:
            break
        begin = time.perf_counter()
        result = run.step(i % SETS)
        times.append(time.perf_counter() - begin)
        # Otherwise calls queue up, and a full queue makes the host wait for the device within the call.
        run.wait(result)
    return statistics.median(times) * 1e3
