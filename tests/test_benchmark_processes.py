"""What `make gpu` rests on: processes that can be paused and stopped, the device's clock, commands side by side."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.machine import cuda_events
from benchmarks.measure import clock
from benchmarks.measure.plan import Limits
from benchmarks.measure.process import Process, World
from benchmarks.studies import stage_runs
from benchmarks.studies.gpu_stages import GpuStage, Group
from benchmarks.studies.side_by_side import Command, Ended, together

# A process that answers every line with its own number of steps, and has a child that sleeps.
PARENT = """
import json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(json.dumps({"ready": True, "child": child.pid}), flush=True)
for line in sys.stdin:
    print(json.dumps({"heard": json.loads(line)}) + "\\n" + json.dumps({"again": True}), flush=True)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; how long it takes decides nothing."""
    while not condition():
        time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, "cpu", tmp_path / "log")


def start(world: World, text: str = PARENT) -> tuple[Process, dict[str, Any]]:
    process = Process(["-c", text], os.environ, world.log)
    return process, world.wait([process], None)[0][1]


def test_a_process_is_stopped_with_its_children(world: World) -> None:
    process, answer = start(world)
    child = psutil.Process(answer["child"])
    process.stop("it took too long")
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert process.process.poll() is not None
    assert process.failed == "it took too long"
    assert world.wait([process], world.now()) == []


def test_a_process_is_paused_with_its_children(world: World) -> None:
    process, answer = start(world)
    family = [psutil.Process(process.process.pid), psutil.Process(answer["child"])]
    process.pause()
    until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family))
    process.send("hello", number=1)
    assert world.wait([process], world.now() + 0.1) == []
    process.resume()
    answers = world.wait([process], None)
    while len(answers) < 2:
        answers += world.wait([process], None)
    assert [answer for _, answer in answers] == [{"heard": {"do": "hello", "number": 1}}, {"again": True}]
    process.stop("done")


def test_a_paused_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """A run that is killed while it times something leaves no process behind, paused or not."""
    text = f"""
import pathlib, sys
from benchmarks.measure.process import World
world = World(pathlib.Path({str(tmp_path)!r}), "cpu", pathlib.Path({str(tmp_path / "log")!r}))
process = world.launch("pytorch")
world.wait([process], None)
process.pause()
print('{{"worker": %d}}' % process.process.pid, flush=True)
sys.stdin.readline()
"""
    world = World(tmp_path, "cpu", tmp_path / "log")
    driver, answer = start(world, text)
    worker = psutil.Process(answer["worker"])
    until(lambda: worker.status() == psutil.STATUS_STOPPED)
    driver.process.kill()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    driver.close()


class Driver:
    """CUDA's driver as the timer calls it, with a clock of its own.

    Args:
        late: seconds that the device works on after the framework said that it was done.
        pace: of its clock; 1 is right.
        fails: the call that fails.
    """

    def __init__(self, late: float = 0.0, pace: float = 1.0, fails: str = "") -> None:
        self.late, self.pace, self.fails = late, pace, fails
        self.marks: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 999
            if name == "cuEventCreate":
                arguments[0]._obj.value = 1 + len(self.marks)
                self.marks[1 + len(self.marks)] = 0.0
            elif name == "cuCtxSynchronize":
                time.sleep(self.late)
            elif name == "cuEventRecord":
                self.marks[arguments[0].value] = time.perf_counter()
            elif name == "cuEventElapsedTime":
                elapsed = self.marks[arguments[2].value] - self.marks[arguments[1].value]
                arguments[0]._obj.value = 1e3 * self.pace * elapsed
            return 0

        return call


class Sleeper:
    """A subject whose step takes some milliseconds."""

    def step(self, which: int) -> float:
        time.sleep(0.005)
        return 1.0

    def wait(self, result: float) -> None: ...

    def numbers(self, result: float) -> dict[str, np.ndarray]:
        return {"logits": np.ones(1)}

    def programs(self) -> int:
        return 0

    def rest(self) -> None: ...

    def memory(self) -> int:
        return 0


def test_the_devices_clock_agrees_with_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    timer, why = cuda_events.timer(Driver())
    assert why is None
    found = clock.block(Sleeper(), 10, timer=timer)
    assert found.ms == pytest.approx(5)
    assert found.events == pytest.approx(5)
    assert clock.block(Sleeper(), 10).events is None


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (Driver(late=0.03), "the device worked 30.0 ms longer: it returns before its work is done"),
        (Driver(pace=1.1), "the host's clock saw 50.00 ms, the device's 55.00 ms: they disagree"),
    ],
)
def test_a_block_is_refused_where_the_device_says_otherwise(
    driver: Driver, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    timer, _ = cuda_events.timer(driver)
    with pytest.raises(clock.ClockError, match=said):
        clock.block(Sleeper(), 10, timer=timer)


def test_a_driver_that_does_not_know_a_field_still_tells_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.machine import description

    tool = tmp_path / "nvidia-smi"
    refuses = "case \"$1\" in *throttle*) echo 'Field is not valid'; exit 2;; esac"
    tool.write_text(f"#!/bin/sh\n{refuses}\necho 'NVIDIA H100, 580.1, 81559 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert description.gpu() == {"name": "NVIDIA H100", "driver_version": "580.1", "memory.total": "81559 MiB"}


@pytest.mark.parametrize(
    "subjects", [("nnx",), ("pytorch-compile", "nnx"), ("pytorch-compile", "pytorch-max-autotune")]
)
def test_inductor_shares_the_cores_with_what_inductor_compiles(
    subjects: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds: list[World] = []

    class Stopped(Exception):
        pass

    def measurement(*arguments: Any) -> None:
        worlds.append(arguments[-1])
        raise Stopped

    monkeypatch.setattr(stage_runs, "Measurement", measurement)
    stage = GpuStage("small", (Group(("resnet50",), ("training",), (256,), subjects),))
    place = stage_runs.StagePlace("gpu", "card", tmp_path, tmp_path, 8e10, 14, 16, tmp_path / "kept")
    with pytest.raises(Stopped):
        stage_runs.timing("a", stage, place, 10.0)
    compiled = sum(subject != "nnx" for subject in subjects)
    assert worlds[0].threads == {"TORCHINDUCTOR_COMPILE_THREADS": str(32 // max(1, compiled))}
    assert worlds[0].compilers == tmp_path / "kept"


def test_a_program_that_would_run_on_the_cpu_is_no_gpu_program() -> None:
    import jax

    from benchmarks.measure.worker import require_gpu
    from ports.errors import UserError

    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"JAX sees no GPU \(its backend is cpu\)"):
        require_gpu()


def test_without_a_driver_there_is_no_timer_and_a_reason() -> None:
    assert cuda_events.timer(Driver(fails="cuInit")) == (None, "cuInit of CUDA's driver gave the error 999")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a driver")
    assert cuda_events.timer() == (None, "CUDA's driver library is missing (libcuda.so.1 or nvcuda.dll)")


def test_commands_side_by_side_end_or_are_stopped(tmp_path: Path) -> None:
    """The clock is the test's: it stands still until both short commands have ended."""
    texts = {"right": "print('fine')", "wrong": "raise SystemExit(3)", "endless": "import time; time.sleep(1000)"}
    commands = [
        Command(name, ["-c", text], tmp_path / f"{name}.log", is_later=name == "endless")
        for name, text in texts.items()
    ]
    told: list[Ended] = []
    ends = together(commands, 10, os.environ, told.append, now=lambda: 5.0 * len(told))
    assert ends == told
    assert {(one.command.name, one.code) for one in ends} == {("right", 0), ("wrong", 3), ("endless", None)}
    assert str(ends[-1]) == "endless: stopped: it was not done after 10 s"
    assert (tmp_path / "right.log").read_text() == "fine\n"


def test_a_command_that_does_not_want_to_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.side_by_side.GRACE", 0.1)
    mark = tmp_path / "started"
    deaf = "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    text = f"{deaf}; pathlib.Path({str(mark)!r}).touch(); time.sleep(1000)"
    command = Command("stubborn", ["-c", text], tmp_path / "log")
    ends = together([command], 1, os.environ, lambda _: None, now=lambda: float(mark.exists()))
    assert ends[0].code is None


@pytest.mark.nightly
def test_a_stage_on_this_machine_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes, that compile side by side and are paused while others are timed."""
    monkeypatch.setenv("BENCHMARKS_TRIES", "100")
    monkeypatch.setattr(
        stage_runs, "Limits", functools.partial(Limits, patience=1000, answer=1000)
    )  # however busy it is
    subjects = {2: ("nnx",), 3: ("pytorch-channels-last",)}
    groups = tuple(
        Group(("cifar_resnet20",), ("inference",), (batch,), some, "float32", (16, 16))
        for batch, some in subjects.items()
    )
    stage = GpuStage("small", groups, starts=1, build=1000.0)
    place = stage_runs.StagePlace("cpu", "card", tmp_path, tmp_path, None, 2, 2)
    assert stage_runs.timing("a", stage, place, 3000.0) == 2
    text = capsys.readouterr().out
    assert "cifar_resnet20, inference, batch 3, float32, 16x16" in text
    assert "Ended early" not in text
    assert len([*tmp_path.glob("card-a-*.json")]) == 1
    assert stage_runs.timing("a", stage, place, 3000.0, ahead="pytorch-channels-last") == 1
    assert len([*tmp_path.glob("card-a-*.json")]) == 1
