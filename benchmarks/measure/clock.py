"""The clock: what a step of a subject takes, and the ways in which a figure would not be one.

A block begins when the device is idle and ends when the last step's result is there. Afterwards the clock reads the
results of all steps: a subject that returned before its work was done makes the clock wait there, and is refused. So is
one that compiled a program within a block. One whose blocks do not come to rest while it warms up is named below its
table. On a GPU the device's own clock runs beside the host's (`machine/cuda_events.py`): a block is refused where the
device still worked when the framework said that it was done, or where the two clocks disagree.

On a busy machine other programs' turns look like lateness; BENCHMARKS_TRIES=20 lets a subject try that often.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from benchmarks.subjects.settings import SETS

# Part of a block that reading its results may take (they are small), and the least that is noticed, in seconds a step.
LATE, LEAST = 0.1, 0.0005

# By how much the device's clock may differ from the host's: a part of the block, and seconds.
APART, LEAST_APART = 0.02, 0.0005

# Warm-up: blocks of this many seconds until three in a row agree within `CALM`; so many at most.
WARM, CALM, MOST = 0.15, 0.1, 8

# How often a block is timed before its subject is refused.
TRIES = int(os.environ.get("BENCHMARKS_TRIES", "3"))


class ClockError(Exception):
    """A figure that would not be one; the message says why."""


@runtime_checkable
class BuiltSubject(Protocol):
    """A subject, built for one setting."""

    def step(self, which: int) -> Any:
        """Begins a step on this input set; it may return before the work is done."""

    def wait(self, result: Any) -> None:
        """Returns when it is done."""

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        """The logits, or the loss, by name."""
        ...

    def programs(self) -> int:
        """How many programs were compiled so far."""
        ...

    def rest(self) -> None:
        """Give memory of the device back that others need while this subject waits."""

    def memory(self) -> int:
        """Return the most bytes of device memory that it has taken; 0 where it has none besides its process's."""
        ...


@runtime_checkable
class DeviceClock(Protocol):
    """A clock of the device; see `benchmarks.machine.cuda_events`."""

    def begin(self) -> None: ...

    def end(self) -> tuple[float, float]: ...


@dataclass
class TimedBlock:
    """Steps that were timed together; `each` where every one was waited for, `events` by the device's clock."""

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
        single: wait for every step, as somebody does who needs each answer.
        timer: the device's clock, where it has one.

    Raises:
        ClockError: the time is not that of the work.
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
    # A device works in order, so that the last result is there after all others.
    run.wait(results[-1])
    seconds = time.perf_counter() - begin
    elapsed = agreed(timer, seconds, steps) if timer is not None else None
    # Results that are there are read at once. What is late here was not done when the clock stopped.
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
    # Arithmetic on NaN or inf may take another time than that on numbers.
    if not all(np.isfinite(array).all() for value in values for array in value.values()):
        raise ClockError("its results are not finite any more")
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
    # The device's clock also ran while it was late; without that, both clocks saw the same block.
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
    """Time a block, and return it with the number of blocks that were thrown away before it.

    Another program's turn on the processor looks like lateness.

    Raises:
        ClockError: so many times in a row.
    """
    for thrown in range(times):
        try:
            return block(run, steps, first, single, timer), thrown
        except ClockError:
            if thrown == times - 1:
                raise
    raise AssertionError


def warm(run: BuiltSubject, seconds: float = WARM, most: int = MOST) -> tuple[int, bool, float]:
    """Run until three blocks agree; return the steps that it took, whether they agree, and seconds a step.

    Raises:
        ClockError: as `again`.
    """
    times: list[float] = []
    done, steps = 0, 1
    for _ in range(most):
        found, thrown = again(run, steps, done)
        # Blocks that were thrown away have warmed it, too; the next block goes on with the following input set.
        done += (thrown + 1) * steps
        times.append(found.seconds / steps)
        # The first steps are slow, so that each block is sized by the one before.
        steps = count(times[-1], seconds)
        if len(times) >= 3 and max(times[-3:]) <= (1 + CALM) * min(times[-3:]):
            break
    calm = len(times) >= 3 and max(times[-3:]) <= (1 + CALM) * min(times[-3:])
    return done, calm, statistics.median(times[-3:])


def count(step: float, seconds: float) -> int:
    """Return how many steps fill this time; one at least."""
    return max(1, min(10_000, round(seconds / max(step, 1e-7))))


def host(run: BuiltSubject, steps: int = 9, most: float = 0.3) -> float:
    """Return the milliseconds until the call of a step returns: the host's own part.

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
