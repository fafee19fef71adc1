"""`make gpu` on a machine whose clock is a fake: compiling takes minutes, programs hang, die, and run out of memory.

Whatever goes wrong, a stage ends within four minutes, gives the figures of everything else, and says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import EAGER, INDUCTOR, START, XLA, FakeWorld, Killed

from benchmarks import gpu
from benchmarks.measure.measurement import Measurement
from benchmarks.measure.plan import Limits, RunPlan
from benchmarks.reporting import results, tables
from benchmarks.reporting.schema import BlockRow, Results
from benchmarks.studies import stage_runs
from benchmarks.studies.gpu_stages import AUTOTUNED, STAGES, pairs, rehearsed
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting

H100, H200 = 85.5e9, 150.8e9  # bytes of their memory, as nvidia-smi tells
BUILDERS = 14  # of 16 cores


class Session:
    """Stages that follow one another on one machine: the folder keeps what compilers keep."""

    def __init__(self, folder: Path, memory: float = H100) -> None:
        self.folder, self.memory, self.cache = folder, memory, set[tuple[str, str]]()

    def stage(self, letter: str, faults: dict[str, str] | None = None, **options: Any) -> tuple[Results, FakeWorld]:
        """Run a stage; return its results file and the machine."""
        world = self.world(faults, **options)
        stage = STAGES[letter]
        stage_runs.timing(letter, stage, self.place(world), stage.seconds)
        return self.found(letter), world

    def ahead(self, letter: str, subject: str) -> FakeWorld:
        world = self.world()
        stage_runs.timing(letter, STAGES[letter], self.place(world), STAGES["b"].seconds, subject)
        return world

    def world(self, faults: dict[str, str] | None = None, **options: Any) -> FakeWorld:
        return FakeWorld(self.folder, BUILDERS, faults, memory=0.95 * self.memory, cache=self.cache, **options)

    def place(self, world: FakeWorld) -> stage_runs.StagePlace:
        memory = stage_runs.MEMORY * self.memory
        return stage_runs.StagePlace("gpu", "card", self.folder, self.folder, memory, BUILDERS, 16, None, lambda: world)

    def found(self, letter: str) -> Results:
        return results.load(self.folder / self.place(self.world()).file(letter).name)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def timed(found: Results) -> set[tuple[str, str]]:
    """List the programs that have figures."""
    return {(Setting.of(row["setting"]).name, row["subject"]) for row in found["rows"] if row["rounds"]}


def refused(found: Results) -> dict[str, set[str]]:
    """Return why programs have none, by subject."""
    whys: dict[str, set[str]] = {}
    for row in found["refused"]:
        whys.setdefault(row["subject"], set()).add(row["why"])
    return whys


def began(block: BlockRow) -> float:
    """Return when a block began."""
    assert "from" in block
    return block["from"]


def wanted(letter: str) -> set[tuple[str, str]]:
    asked = pairs(STAGES[letter].groups, "gpu")
    return {(setting.name, subject) for setting, subject in asked if SUBJECTS[subject].missing() is None}


@pytest.mark.parametrize("letter", ["a", "d", "e"])
def test_a_stage_has_all_its_figures_within_four_minutes(letter: str, session: Session) -> None:
    found, world = session.stage(letter)
    assert timed(found) == wanted(letter)
    assert not found["refused"]
    assert world.time < 240
    for one in tables.tables(found):
        assert "times eager [95 %]" in one.head or letter == "e"
        assert len(one.rows) >= 3


def test_the_first_stage_repeats_every_program(session: Session) -> None:
    """With all programs compiled within a minute of each other, there is time for several starts."""
    found, _ = session.stage("a")
    assert all(len({one["start"] for one in row["rounds"]}) >= 3 for row in found["rows"])


def test_every_program_is_timed_once_before_any_is_started_again(session: Session) -> None:
    found, world = session.stage("a")
    first = [min(began(one) for one in row["rounds"]) for row in found["rows"]]
    second = [min(began(one) for one in row["rounds"] if one["start"] == 1) for row in found["rows"]]
    assert max(first) < min(second)
    assert world.most > 3  # they compile side by side


def test_programs_that_are_compared_are_timed_in_turn(session: Session) -> None:
    """In each round every program of the setting has one block, before the next round begins."""
    _, world = session.stage("a")
    training = [subject for _, setting, subject in world.rounds if "training" in setting]
    assert len(training) % 9 == 0
    for i in range(0, len(training), 3):
        assert len(set(training[i : i + 3])) == 3


def test_stages_share_what_was_compiled_and_what_must_come_out(session: Session) -> None:
    session.stage("a")
    before = {*session.cache}
    session.ahead("c", AUTOTUNED)
    found, world = session.stage("c")
    rows = {(Setting.of(row["setting"]).name, row["subject"]): row for row in found["rows"]}
    eager = rows["resnet50-training-256-bfloat16-224x224", "pytorch-channels-last"]
    assert ("resnet50-training-256-bfloat16-224x224", "pytorch-channels-last") in before
    assert [start["cold"] for start in eager["starts"]][:2] == [True, False]  # the first is that of stage a
    assert results.first_step(eager, cold=True) == pytest.approx(START + EAGER)
    assert {(name, AUTOTUNED) for name, subject in wanted("c") if subject == AUTOTUNED} <= timed(found)
    assert {name for name, _ in timed(found)} == {name for name, _ in wanted("c")}  # every setting has a table
    assert len(timed(found)) >= 0.8 * len(wanted("c"))
    assert world.time < 240


def test_more_memory_gives_all_figures_of_a_large_stage(tmp_path: Path) -> None:
    session = Session(tmp_path, H200)
    session.stage("a")
    session.ahead("c", AUTOTUNED)
    found, _ = session.stage("c")
    assert len(timed(found)) >= len(wanted("c")) - 2


def test_what_takes_longer_than_others_wait_does_not_hold_them_up(session: Session) -> None:
    """Alone on a fresh machine, stage c has no time for 180 s of autotuning; it times the rest of the setting."""
    found, world = session.stage("c")
    assert all("stopped: it still compiled after" in why for why in refused(found)[AUTOTUNED])
    assert {name for name, _ in timed(found)} >= {"resnet50-inference-256-bfloat16-224x224"}
    assert len(timed(found)) >= 12
    assert world.time < 240


@pytest.mark.sample(5)
@pytest.mark.parametrize("subject", ["pytorch-channels-last", "pytorch-compile", "nnx", "nnx-folded"])
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("hang", "stopped: it still compiled after 150 s"),
        ("die", "its process ended: SIGSEGV"),
        ("memory", "out of memory"),
        ("hang-timed", "gave no answer within 15 s"),
    ],
)
def test_what_goes_wrong_with_one_subject_costs_no_other(subject: str, fault: str, why: str, session: Session) -> None:
    found, world = session.stage("a", {subject: fault})
    assert timed(found) == {key for key in wanted("a") if key[1] != subject}
    assert {*refused(found)} == {subject}
    assert all(said.startswith(why) for said in refused(found)[subject])
    assert world.time < 240
    assert f"not timed: {subject}: {why}" in tables.tables(found)[0].notes


@pytest.mark.sample(4)
@pytest.mark.parametrize(("letter", "settings"), [("c", 3), ("d", 6), ("e", 1)])
@pytest.mark.parametrize("fault", ["hang", "die", "memory", "hang-timed"])
def test_every_stage_gives_its_tables_whatever_one_subject_does(
    letter: str, settings: int, fault: str, session: Session
) -> None:
    """Stage c, alone on a fresh machine, has time for three to five of its six settings; after a and b for more."""
    found, world = session.stage(letter, {"nnx": fault})
    assert len({name for name, _ in timed(found)}) >= settings
    assert "nnx" not in {subject for _, subject in timed(found)}
    assert world.time < 240


def test_programs_that_need_more_memory_than_was_thought_are_tried_alone(session: Session) -> None:
    found, world = session.stage("a", factor=1.8)
    assert timed(found) == wanted("a")
    assert not found["refused"]
    assert world.time < 240


def test_a_command_that_is_killed_leaves_what_it_had(session: Session) -> None:
    begun = session.stage("a")[1].time
    with pytest.raises(Killed):
        session.stage("d", begun=begun, killed=begun + 150)
    found = session.found("d")
    assert found.get("ended") == "the run was interrupted"
    assert len(timed(found)) >= 7
    assert len(tables.tables(found)) >= 2


def test_ten_minutes_hold_the_two_first_stages_and_the_next(session: Session) -> None:
    seconds = session.stage("a")[1].time + STAGES["b"].seconds
    session.ahead("c", AUTOTUNED)
    assert seconds < 480
    with pytest.raises(Killed):
        session.stage("c", begun=seconds, killed=600)
    assert timed(session.found("c"))


@pytest.mark.parametrize(("fault", "why"), [("hang", "its reference was not ready after"), ("die", "SIGSEGV")])
def test_without_a_reference_nothing_is_timed(fault: str, why: str, session: Session) -> None:
    from ports.errors import UserError

    with pytest.raises(UserError, match=why):
        session.stage("a", {"reference": fault})


@pytest.mark.parametrize(("fault", "why"), [("hang-2", "its reference was not ready after"), ("die-2", "SIGSEGV")])
def test_one_reference_that_fails_costs_its_own_programs_alone(fault: str, why: str, session: Session) -> None:
    found, world = session.stage("a", {"reference": fault})
    assert {name for name, _ in timed(found)} == {"resnet50-inference-256-bfloat16-224x224"}
    assert len(refused(found)) == 3
    assert all(why in next(iter(whys)) for whys in refused(found).values())
    assert world.time < 240


@pytest.mark.parametrize(("fault", "ended"), [("die-2", "SIGSEGV")])
def test_one_reference_that_fails_costs_its_own_programs_alone_without_limits(
    fault: str, ended: str, tmp_path: Path
) -> None:
    world = FakeWorld(tmp_path, 2, {"reference": fault}, memory=float("inf"))
    found = Measurement(RunPlan(SMALL, ["pytorch", "nnx"], starts=2), tmp_path, None, lambda _: None, world=world).run()
    assert {name for name, _ in timed(found)} == {SMALL[0].name}
    assert all(ended in next(iter(whys)) for whys in refused(found).values())


def test_time_in_which_a_program_was_paused_is_not_its_compiling(session: Session) -> None:
    found, _ = session.stage("d")
    rows = {(row["setting"]["network"], row["setting"]["mode"], row["subject"]): row for row in found["rows"]}
    for mode in ("inference", "training"):
        for subject, seconds in (("nnx", XLA), ("pytorch-compile", INDUCTOR)):
            start = rows["resnet152", mode, subject]["starts"][0]
            assert start["first_step_seconds"] == pytest.approx(seconds)


def test_what_the_device_was_like_is_said(session: Session) -> None:
    found, _ = session.stage("a")
    lines = tables.below(found)
    assert any("SM clock 1755 to 1755 MHz, 512.1 to 512.1 W, 48 to 48 °C" in line for line in lines)
    assert any("event timers and the host's clock differ by at most 0 %" in line for line in lines)
    assert len(found["ceilings"]) == 2 * len({one["start"] for one in found["ceilings"]})


def test_without_a_device_clock_it_is_said(session: Session) -> None:
    found, _ = session.stage("a")
    found["rows"][0]["starts"][0]["no_events"] = "no driver"
    assert "Some blocks have the host's clock alone: no driver." in tables.below(found)


# The fake must see what it is there to see.


def machine(tmp_path: Path, builders: int) -> tuple[FakeWorld, dict[str, Any]]:
    world = FakeWorld(tmp_path, builders)
    setting = Setting("resnet50", "training", 256, "bfloat16", (224, 224), "gpu")
    return world, setting.asdict()


def test_the_fake_sees_a_program_that_works_beside_a_timed_one(tmp_path: Path) -> None:
    world, setting = machine(tmp_path, 2)
    first, second = world.launch("nnx"), world.launch("linen")
    assert len(world.wait([first, second], None)) == 2
    first.send("prepare", setting=setting)
    world.wait([first], None)
    second.send("prepare", setting=setting)
    with pytest.raises(AssertionError):
        first.send("round", seconds=1.0, single=False)
    second.pause()
    first.send("round", seconds=1.0, single=False)


def test_the_fake_sees_too_many_builders_and_too_little_memory(tmp_path: Path) -> None:
    world, setting = machine(tmp_path, 5)
    processes = [world.launch("nnx") for _ in range(6)]
    world.wait(processes, None)
    for process in processes[:5]:
        process.send("prepare", setting=setting)
    with pytest.raises(AssertionError):
        processes[5].send("prepare", setting=setting)
    answers = [answer for _, answer in world.wait(processes, None)]
    assert sum(answer.get("error") == "out of memory" for answer in answers) == 1


def test_a_planner_that_starts_again_too_early_is_seen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: no pausing while something is timed."""
    from fake_gpu import FakeProcess

    monkeypatch.setattr(FakeProcess, "pause", lambda self: None)
    monkeypatch.setattr(FakeProcess, "resume", lambda self: None)
    with pytest.raises(AssertionError):
        session.stage("a")


# Without limits: a setting after the other.


def plain(tmp_path: Path, plan: RunPlan) -> tuple[Results, FakeWorld]:
    world = FakeWorld(tmp_path, max(plan.builders, plan.later_builders), memory=float("inf"))
    return Measurement(plan, tmp_path, None, lambda _: None, world=world).run(), world


SMALL = [Setting("cifar_resnet20", mode, 2, "float32", (16, 16)) for mode in ("inference", "training")]


@pytest.mark.parametrize("builders", [1, 2])
def test_without_limits_one_setting_follows_the_other(builders: int, tmp_path: Path) -> None:
    plan = RunPlan(SMALL, ["pytorch", "nnx", "linen"], starts=1, rounds=2, builders=builders)
    found, world = plain(tmp_path, plan)
    assert [name for _, name, _ in world.rounds] == [SMALL[0].name] * 6 + [SMALL[1].name] * 6
    assert world.most == builders
    assert len([one for one in world.processes if one.subject != "reference"]) == 3
    assert "ended" not in found


def test_processes_that_do_not_fit_together_go_in_groups(tmp_path: Path) -> None:
    plan = RunPlan(SMALL, ["pytorch", "nnx", "linen"], starts=1, rounds=2, alive=2)
    found, world = plain(tmp_path, plan)
    assert all(len(row["rounds"]) == 2 for row in found["rows"])
    assert len(found["rows"]) == 6
    groups = [name for _, name, _ in world.rounds]
    assert groups == [SMALL[0].name] * 4 + [SMALL[1].name] * 4 + [SMALL[0].name] * 2 + [SMALL[1].name] * 2


@pytest.mark.parametrize(("starts", "ended"), [(1, None), (2, "after 1 s, in start 2 of 2")])
def test_a_run_ended_early_where_something_was_left(starts: int, ended: str | None, tmp_path: Path) -> None:
    found, _ = plain(tmp_path, RunPlan(SMALL[:1], ["pytorch"], starts=starts, budget=1.0))
    assert found.get("ended") == ended
    assert len(found["rows"][0]["rounds"]) == 5


def test_a_budget_that_is_over_begins_no_other_setting(tmp_path: Path) -> None:
    found, _ = plain(tmp_path, RunPlan(SMALL, ["pytorch", "nnx"], starts=2, budget=1.0))
    assert {row["setting"]["mode"] for row in found["rows"]} == {"inference"}
    assert found.get("ended") == "after 1 s, in start 1 of 2"


# The command.


def test_every_stage_asks_for_what_there_is() -> None:
    assert [*STAGES] == ["a", "b", "c", "d", "e"]
    for letter, stage in STAGES.items():
        assert stage.seconds <= 240
        assert bool(stage.groups) != bool(stage.checks)
        for group in (*stage.groups, *rehearsed(letter, stage).groups):
            for subject in group.subjects:
                assert any(s == subject for _, s in pairs((group,), "gpu")) or SUBJECTS[subject].networks, subject
        for other, subject in stage.ahead:
            assert subject in {s for _, s in pairs(STAGES[other].groups, "gpu")}
    asked = {(s.network, s.mode, s.batch) for stage in STAGES.values() for s, _ in pairs(stage.groups, "gpu")}
    assert {("resnet50", mode, batch) for mode in ("inference", "training") for batch in (32, 256)} <= asked
    assert {"cifar_resnet20", "resnet18", "resnet50", "resnet152"} == {network for network, _, _ in asked}
    flags = {name for name, row in SUBJECTS.items() if row.swept and "gpu" in row.devices}
    assert flags <= {subject for _, subject in pairs(STAGES["e"].groups, "gpu")}
    assert sum(rehearsed(letter, stage).seconds for letter, stage in STAGES.items()) < 600


def test_a_check_that_is_rehearsed_names_no_gpu() -> None:
    for check in rehearsed("b", STAGES["b"]).checks:
        assert "gpu" not in check.arguments
        assert "--tf32" not in check.arguments
        assert "on" not in check.arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "z"], "--stage: got 'z', expected some of a, b, c, d, e"),
        (["--minutes", "0"], "--minutes: got 0, expected more than 0"),
        (["--builders", "0"], "--builders: got 0, expected 1 or more"),
        (["--rehearsal", "--out", "/dev/null/here"], "--out /dev/null/here: cannot be made"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("benchmarks.gpu: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def run_stages(session: Session, monkeypatch: pytest.MonkeyPatch, timing: Callable[..., int], **options: Any) -> int:
    monkeypatch.setattr(stage_runs, "timing", timing)
    stages = {letter: STAGES[letter] for letter in ("a", "d", "e")}
    return stage_runs.run(stages, session.place(session.world()), **options)


def test_a_stage_that_fails_does_not_keep_the_next_from_running(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def timing(letter: str, *_: Any) -> int:
        if letter == "d":
            raise ArithmeticError("planted")
        return 3

    assert run_stages(session, monkeypatch, timing) == 1
    captured = capsys.readouterr()
    assert "stage e: 3 figures" in captured.out
    assert "ArithmeticError: planted" in captured.err
    assert captured.err.endswith("benchmarks.gpu: no figures for stage d; the reasons are above\n")


def test_a_stage_for_which_no_time_is_left_is_said(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stages(session, monkeypatch, lambda *_: 1, minutes=0.1) == 1
    assert capsys.readouterr().out.count("left out, because its time is over") == 3


def test_limits_are_in_the_results_file(tmp_path: Path) -> None:
    plan = RunPlan(SMALL, ["pytorch"], limits=Limits(10.0, 5.0, memory=1e9))
    assert json.loads(json.dumps(plan.described()))["limits"]["memory"] == 1e9
