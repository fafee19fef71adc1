"""The clock and the gate of the benchmarks: what is no figure is refused, and what is one is right."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.measure import clock, gate
from benchmarks.measure.clock import ClockError
from benchmarks.measure.worker import Worker, answer


class FakeTime:
    """A clock that only the subjects move, so that no test depends on how busy the machine is."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = FakeTime()


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "time", time)


class Sleeper:
    """A subject that takes 20 ms a step."""

    def __init__(self) -> None:
        self.done = 0

    def step(self, which: int) -> Any:
        time.sleep(0.02)
        self.done += 1
        return float(which)

    def wait(self, result: Any) -> None:
        pass

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        return {"loss": np.array(result)}

    def programs(self) -> int:
        return 0

    def rest(self) -> None:
        pass

    def memory(self) -> int:
        return 0


class Early(Sleeper):
    """A subject that says it is done when its work has only begun."""

    def step(self, which: int) -> Any:
        return time.now + 0.02  # when a thread of its own will be done

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        time.sleep(max(0.0, result - time.now))
        return {"loss": np.zeros(())}


class Lazy(Sleeper):
    """A subject that works when somebody reads its result."""

    def step(self, which: int) -> Any:
        return None

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        time.sleep(0.02)
        return {"loss": np.zeros(())}


class Compiles(Sleeper):
    """A subject under XLA whose input has another shape after a while."""

    def __init__(self, after: int) -> None:
        from benchmarks.subjects import jax_steps

        self.run, self.after, self.count = jax.jit(lambda x: (x @ x.T).sum()), after, 0
        self.compiled = lambda: jax_steps.compiled

    def step(self, which: int) -> Any:
        self.count += 1
        return self.run(np.ones((8, 8 if self.count <= self.after else 8 + self.count), np.float32))

    def wait(self, result: Any) -> None:
        jax.block_until_ready(result)

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        return {"loss": np.asarray(result)}

    def programs(self) -> int:
        return self.compiled()


def test_a_known_sleep_is_what_the_clock_says() -> None:
    assert clock.block(Sleeper(), 5).ms == pytest.approx(20)
    assert clock.block(Sleeper(), 5, single=True).each == pytest.approx([0.02] * 5)


@pytest.mark.parametrize("subject", [Early, Lazy])
def test_one_that_returns_before_its_work_is_done_is_refused(subject: Any) -> None:
    with pytest.raises(ClockError, match="it returns before its work is done"):
        clock.block(subject(), 5)
    with pytest.raises(ClockError, match="it returns before its work is done"):
        clock.warm(subject())


def test_one_that_compiles_while_it_is_timed_is_refused() -> None:
    run = Compiles(after=8)
    run.wait(run.step(0))
    assert clock.block(run, 5).steps == 5
    with pytest.raises(ClockError, match="it compiled 3 programs while it was timed"):
        clock.block(run, 5)


def test_one_that_never_stops_compiling_does_not_get_warm() -> None:
    with pytest.raises(ClockError, match=r"it compiled \d+ programs? while it was timed"):
        clock.warm(Compiles(after=0), seconds=0.01)


def test_numbers_that_are_not_finite_are_refused() -> None:
    run = Sleeper()
    run.numbers = lambda result: {"loss": np.array(np.nan)}
    with pytest.raises(ClockError, match="no longer finite"):
        clock.block(run, 1)


def test_warm_up_ends_where_three_blocks_agree() -> None:
    run = Sleeper()
    steps, calm, seconds = clock.warm(run, seconds=0.04)
    assert calm
    assert steps == run.done < 12
    assert seconds == pytest.approx(0.02)


def test_a_number_beyond_its_bound_is_no_parity() -> None:
    expected = {"logits": np.array([1.0, 2.0])}
    near, far = ({"logits": np.array([1.0, 2.0 * (1 + by)])} for by in (1e-7, 1e-5))
    assert gate.judge(near, expected, {"logits": 1e-6}).ok
    verdict = gate.judge(far, expected, {"logits": 1e-6})
    assert not verdict.ok
    assert verdict.tensor == "logits"
    assert verdict.worst == pytest.approx(2e-5 / np.sqrt(5) / 1e-6, rel=1e-3)


@pytest.mark.parametrize("found", [{}, {"logits": np.array([1.0, np.nan])}, {"logits": np.ones(3)}])
def test_numbers_that_are_not_there_are_no_parity(found: dict[str, np.ndarray]) -> None:
    assert not gate.judge(found, {"logits": np.array([1.0, 2.0])}, {"logits": 1e-6}).ok


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (ValueError("two\nlines"), "ValueError: two"),
        (
            _caused(ImportError("no ResNet\nhere"), _caused(ValueError("its own"), RuntimeError("no nms\nthere"))),
            "ImportError: no ResNet, from RuntimeError: no nms",
        ),
    ],
)
def test_what_goes_wrong_in_a_subject_is_its_answer(error: Exception, said: str) -> None:
    worker: Any = object.__new__(Worker)

    def prepare(**_: Any) -> Any:
        raise error

    worker.prepare = prepare
    assert answer(worker, {"do": "prepare"}) == {"error": said}


def test_the_first_step_of_a_round_is_not_timed() -> None:
    class Cold(Sleeper):
        """Its first step after a wait takes a second."""

        def step(self, which: int) -> Any:
            time.sleep(0.0 if self.done else 1.0)
            return super().step(which)

    worker: Any = object.__new__(Worker)
    worker.run, worker.at, worker.seconds = Cold(), 7, 0.02
    found = worker.round(seconds=0.1, single=False)
    assert (worker.run.done, worker.at) == (found["steps"] + 1, 7 + found["steps"] + 1)
    assert found["ms"] == pytest.approx(20)
