"""`python -m benchmarks`: a run from end to end on a small network, its results, and what goes wrong in one."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeWorld

from benchmarks.__main__ import SpeedOptions, main
from benchmarks.measure import expected
from benchmarks.measure.plan import RunPlan
from benchmarks.measure.process import World
from benchmarks.measure.worker import Worker
from benchmarks.reporting import results, tables
from benchmarks.subjects import model_cost, roster
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting, SettingGrid
from benchmarks.subjects.subject import SWEPT, SubjectOptions, TimedSubject
from ports import families

QUICKLY = ["--starts", "1", "--rounds", "2", "--seconds", "0.03", "--device", "cpu"]
SMALL = ["--batch", "2", "--image-size", "16", *QUICKLY]
ROOT = Path(__file__).resolve().parents[1]
SETTING = Setting("tutorial_resnet", "training", 2, "float32", (16, 16))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a small run, and its page beside them; pytest's processes share one run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "measured"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run.html").exists():
            # Tests share the machine with others: a subject is not refused because of their turns on the processor.
            patch.setenv("BENCHMARKS_TRIES", "100")
            out = ["--out", str(folder / "run.json"), "--html", str(folder / "run.html")]
            assert main(["tutorial_resnet", *SMALL, "--subjects", "pytorch,nnx", *out]) == 0
    return folder / "run.json"


def test_every_subject_is_judged_and_timed(measured: Path) -> None:
    found = results.load(measured)
    assert [str(setting) for setting in results.settings_of(found)] == [
        "tutorial_resnet, inference, batch 2, float32, 16x16",
        "tutorial_resnet, training, batch 2, float32, 16x16",
    ]
    for setting in results.settings_of(found):
        rows = results.rows_of(found, setting)
        assert {row["subject"] for row in rows} == {"pytorch", "nnx"}
        for row in rows:
            assert row["gate"]["ok"]
            assert 0 < row["gate"]["worst"] <= 1
            assert [(one["start"], one["round"]) for one in row["rounds"]] == [(0, 0), (0, 1)]
            assert results.median(row) > 0
            assert row.get("peak_bytes", 0) > 1e8
            assert (results.host(row) is not None) == (row["framework"] == "jax")
    assert {one["framework"] for one in found["ceilings"]} == {"pytorch", "jax"}
    assert found["machine"]["cores"] == os.cpu_count()


def test_the_page_opens_without_a_network(measured: Path) -> None:
    page = measured.with_suffix(".html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="https?:', page)
    for row in results.load(measured)["rows"]:
        assert f"{results.throughput(row):.4g}" in page


def test_a_report_of_stored_results(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(measured), "--svg", str(tmp_path / "plots")]) == 0
    text = capsys.readouterr().out
    assert "tutorial_resnet, training, batch 2, float32, 16x16" in text
    assert "times as fast as the fastest PyTorch port (pytorch)" in text
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == [
        "roofline.svg",
        "throughput.svg",
        "time.svg",
    ]


def test_what_got_slower(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results.load(measured)
    slower = copy.deepcopy(found)
    for row in slower["rows"]:
        if row["subject"] == "nnx":
            for one in row["rounds"]:
                one["ms"] *= 1000
    slower["machine"]["versions"]["jax"] = "0.0"
    results.save(slower, tmp_path / "slower.json")
    assert main(["compare", str(measured), str(measured)]) == 0
    assert capsys.readouterr().out.count("no change seen") == 4
    assert main(["compare", str(measured), str(tmp_path / "slower.json")]) == 0
    text = capsys.readouterr().out
    assert sum("slower" in line for line in text.splitlines() if "nnx" in line) == 2
    assert text.count("no change seen") == 2
    assert "versions: jax" in text
    assert "then 0.0" in text
    assert "eager PyTorch moved" not in text
    for row in slower["rows"]:
        for one in row["rounds"]:
            one["ms"] *= 1000 if row["subject"] == "pytorch" else 1
    results.save(slower, tmp_path / "slower.json")
    assert main(["compare", str(measured), str(tmp_path / "slower.json")]) == 0
    assert capsys.readouterr().out.count("eager PyTorch moved too") == 2


def test_what_is_quicker_than_it_can_be_is_refused(measured: Path, tmp_path: Path) -> None:
    """As a subject that keeps the answers of the few inputs that take turns: the gate and the clock see nothing."""
    from benchmarks.measure.measurement import Measurement

    found = results.load(measured)
    idle = next(row for row in found["rows"] if row["subject"] == "nnx")
    for one in idle["rounds"]:
        one["ms"] = 0.0001
    world = FakeWorld(tmp_path, 1)
    measurement = Measurement(RunPlan([SETTING], ["nnx"], starts=0), tmp_path, None, lambda _: None, world=world)
    measurement.found["ceilings"] = found["ceilings"]
    measurement.rows.rows = {(json.dumps(row["setting"]), row["subject"]): row for row in found["rows"]}
    told = measurement.run()
    assert [row["subject"] for row in told["refused"]] == ["nnx"]
    assert "does not do its work in each" in told["refused"][0]["why"]
    assert len(told["rows"]) == len(found["rows"]) - 1


def test_one_block_has_no_interval(measured: Path) -> None:
    found = results.load(measured)
    row, base = found["rows"][:2]
    for one in (row, base):
        del one["rounds"][1:]
    assert re.fullmatch(r"\d+\.\d\d", tables.times(results.ratio(row, base)))


def test_files_without_a_row_in_common(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = results.load(measured)
    for row in other["rows"]:
        row["setting"]["batch"] = 3
    results.save(other, tmp_path / "other.json")
    assert main(["compare", str(measured), str(tmp_path / "other.json")]) == 2
    assert "without a row in common" in capsys.readouterr().err


def test_figures_that_are_not_to_be_believed_are_named(measured: Path) -> None:
    """A machine that others used, a block that took another's time many times, a run that was interrupted."""
    found = results.load(measured)
    assert "ended" not in found
    assert all("busy" in one for one in found["readings"])
    found["readings"] = [{"start": 0, "busy": 0.1}]
    for row in found["rows"]:
        for one in row["rounds"]:
            one["ms"] = 10.0
    calm = [*tables.below(found), *tables.tables(found)[0].notes]
    assert not any("Something else ran" in line or "do not trust them" in line for line in calm)
    found["readings"][0]["busy"] = 1.1
    found["ended"] = "the run was interrupted"
    found["rows"][0]["rounds"][0]["ms"] = 30.0
    said = tables.below(found)
    assert any("Something else ran: 1.1 of" in line for line in said)
    assert "Ended early: the run was interrupted." in said
    assert any(
        line.endswith(f"do not trust them: {found['rows'][0]['subject']}") for line in tables.tables(found)[0].notes
    )


@pytest.mark.nightly
def test_a_run_that_is_interrupted_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    command = [sys.executable, "-m", "benchmarks", "cifar_resnet20", *SMALL, "--subjects", "pytorch", "--starts", "50"]
    process = subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not out.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = results.load(out)
    assert found.get("ended") == "the run was interrupted"
    assert any(line.startswith(f"{tables.started(found)} start") for line in tables.below(found))


def test_a_wrong_subject_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.subjects import torch_steps

    def build(case: Any, options: SubjectOptions) -> Any:
        run = torch_steps.build(case, options)
        for module in run.net.modules():
            if hasattr(module, "eps"):
                module.eps = 1e-5 if options == SubjectOptions() else 1e-3
        return run

    planted: Any = types.ModuleType("benchmarks.subjects.planted")
    planted.build = build
    monkeypatch.setitem(sys.modules, "benchmarks.subjects.planted", planted)
    expected.prepare(SETTING, {}, tmp_path)
    for options, ok in ((SubjectOptions(), True), (SubjectOptions(channels_last=True), False)):
        row = TimedSubject("planted", "pytorch", "planted:build", "", options)
        monkeypatch.setitem(SUBJECTS, "planted", row)
        worker = Worker("planted", tmp_path)
        answer = worker.prepare(SETTING.asdict())
        assert answer["gate"]["ok"] == ok
        assert (worker.run is not None) == ok
    assert "beyond its bound" in answer["gate"]["text"]


def test_a_killed_worker_is_an_answer(tmp_path: Path) -> None:
    world = World(tmp_path, "cpu", tmp_path / "log")
    process = world.launch("pytorch")
    assert world.wait([process], None)[0][1]["ready"]
    assert process.failed is None
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    process.send("release", cost=False)
    why = "its process ended: SIGKILL (out of memory?)"
    assert world.wait([process], None) == [(process, {"error": why, "ended": -9})]
    assert process.failed == why
    assert world.wait([process], None) == []  # it has said so once
    process.close()


@pytest.mark.nightly
def test_a_subject_that_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here one whose package imports and has no such network."""
    missing = next((name for name, row in SUBJECTS.items() if row.missing()), None)
    if missing is None:
        pytest.skip("every peer is installed")
    only = ["--subjects", f"pytorch,{missing}"]
    assert main(["resnet50", *SMALL, "--image-size", "32", "--mode", "inference", *only]) == 0
    text = capsys.readouterr().out
    assert f"Absent: {missing}: the package" in text
    assert "pytorch" in text


OWN = """
import numpy as np, torch
import parity
from flax import nnx

class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.norm(self.up(x)), approximate={approximate}))

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    x = np.random.default_rng(0).standard_normal((3, 4))
    return model, parity.move(model, Mlp(nnx.Rngs(0)), x), x, {{"accept": ["bn-running-var"]}}
"""


@pytest.mark.nightly
def test_a_pair_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pair.py"
    file.write_text(OWN.format(approximate=False))
    subjects = ("own-pytorch", "own-flax", "own-flax-autotune")
    only = ["--subjects", ",".join(subjects)]
    assert main([f"{file}:make", *QUICKLY, *only, "--out", str(tmp_path / "own.json")]) == 0
    found = results.load(tmp_path / "own.json")
    assert f"{file}:make: its file has the check accept bn-running-var." in tables.below(found)
    rows = found["rows"]
    assert {(row["subject"], row["setting"]["mode"]) for row in rows} == {
        (subject, mode) for subject in subjects for mode in ("inference", "training")
    }
    assert all(row["gate"]["ok"] for row in rows)
    assert {row["subject"] for row in rows if "options" in row["starts"][0]} == {"own-flax-autotune"}
    assert {row["subject"] for row in rows if row.get("cost")} == {"own-flax", "own-flax-autotune"}
    file.write_text(OWN.format(approximate=True))
    capsys.readouterr()
    assert main([f"{file}:make", *QUICKLY, *only]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no parity" in error
    assert "GELU" in error


@pytest.mark.nightly
def test_what_a_subject_raises_is_a_row_and_the_log_has_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = tmp_path / "pair.py", tmp_path / "run.log"
    raises = "        if 'own-flax' in sys.argv: raise ArithmeticError('planted')\n"  # in its worker, not in the check
    text = OWN.format(approximate=False).replace("(self, x):\n", f"(self, x):\n{raises}")
    file.write_text(f"import sys\n{text}")
    only = ["--subjects", "own-pytorch,own-flax", "--mode", "inference"]
    assert main([f"{file}:make", *QUICKLY, *only, "--log", str(log)]) == 1
    assert "not timed: own-flax: the Flax model raises ArithmeticError: planted" in capsys.readouterr().out
    assert f'File "{file}", line ' in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet5"], "resnet5"),
        (["--batch", "0"], "--batch: got '0', expected numbers from 1"),
        (["resnet18@none"], "resnet18@none: got 'none', expected numbers from 1"),
        (["--mode", "guess"], "--mode: got 'guess', expected inference, training"),
        (["--precision", "float8"], "--precision: got 'float8'"),
        (["--precision", "tf32"], "tf32: got the device cpu, expected an NVIDIA GPU"),
        (["--subjects", "tensorflow"], "--subjects: got 'tensorflow', expected some of pytorch, "),
        (["--image-size", "big"], "--image-size: got 'big'"),
        (["--rounds", "0"], "--rounds: got 0"),
        (["--budget", "-1"], "--budget: got -1"),
        (["--subjects", "pytroch"], "got 'pytroch' (did you mean 'pytorch'?), expected some of pytorch, pytorch-ch"),
        (["--subjects", "own-flax"], "--subjects: got own-flax, none of which is for resnet50"),
        (["./pair.py"], "./pair.py: got a file, expected the function in it that gives the pair: ./pair.py:make"),
        (["./pair.py:make", "--batch", "8"], "./pair.py:make: got --batch, --image-size or --precision, expected none"),
        (["--out", "/nowhere/at/all.json"], "--out /nowhere/at/all.json: no such folder /nowhere/at"),
        (["--log", "/nowhere/at/all.log"], "--log /nowhere/at/all.log: no such folder /nowhere/at"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("benchmarks: ")
    assert captured.err.count("\n") == 1


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    from parity.running.device import jax_gpu, torch_gpu

    if torch_gpu() is not None and jax_gpu() is not None:
        pytest.skip("there is one")
    assert main(["resnet18", "--device", "gpu"]) == 2
    assert "got gpu, expected an available one" in capsys.readouterr().err


def test_everything_on_a_gpu_that_is_not_there() -> None:
    from benchmarks.machine.description import gpu

    if gpu() is not None:
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "without an NVIDIA GPU" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[]", "another kind of file"),
        ('{"kind": "parity", "schema": 1}', "another kind of file"),
        ('{"kind": "speed", "schema": 99}', "got schema 99, expected 1; measure again"),
    ],
)
def test_results_of_another_kind(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    if text is not None:
        file.write_text(text)
    assert main(["report", str(file)]) == 2
    assert said in capsys.readouterr().err


def row(ms: list[list[float]]) -> Any:
    return {
        "rounds": [
            {"start": s, "round": r, "ms": value, "steps": 1}
            for s, start in enumerate(ms)
            for r, value in enumerate(start)
        ]
    }


def test_a_ratio_of_rows_that_were_timed_in_turn_is_paired() -> None:
    noisy = [[10.0, 30.0, 10.0], [20.0, 20.0, 50.0], [10.0, 40.0, 10.0]]
    half = [[ms / 2 for ms in start] for start in noisy]
    assert results.ratio(row(half), row(noisy)) == pytest.approx((2, 2, 2))
    value, low, high = results.across(row(half), row(noisy))
    assert value == 2
    assert low < 1.7
    assert high > 2.3


def test_an_interval_is_that_of_draws_made_one_by_one() -> None:
    """Starts of different lengths: a run that was interrupted has them."""
    rng = np.random.default_rng(1)
    ours, theirs = ([list(rng.uniform(10, 20, length)) for length in (4, 4, 1, 3)] for _ in range(2))
    found = results.ratio(row(ours), row(theirs))
    drawn = []
    for _ in range(4000):
        a, b = [], []
        for start in rng.integers(0, 4, 4):
            chosen = rng.integers(0, len(ours[start]), len(ours[start]))
            a += [ours[start][i] for i in chosen]
            b += [theirs[start][i] for i in chosen]
        drawn.append(np.median(b) / np.median(a))
    assert found[1:] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=0.05)


def test_what_a_network_needs() -> None:
    """ResNet-50 at 224 pixels: 4.09 G multiplications forward, 24.3 GFLOP in training."""
    spec = families.get("resnet50")
    forward, training = (
        model_cost.cost(spec, Setting("resnet50", mode, 1, "bfloat16", (224, 224)))
        for mode in ("inference", "training")
    )
    assert forward.flops == pytest.approx(2 * 4.09e9, rel=0.01)
    assert training.flops == pytest.approx(24.3e9, rel=0.01)
    assert forward.bytes < training.bytes
    eight = model_cost.cost(spec, Setting("resnet50", "training", 8, "bfloat16", (224, 224)))
    assert eight.flops == pytest.approx(8 * training.flops)


def test_small_arrays_are_packed_and_nothing_is_lost() -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.subjects.packed import Packed

    rng = np.random.default_rng(0)
    tree = {
        "kernel": jnp.array(rng.normal(size=(3, 3, 4, 5)), jnp.float32),
        "large": jnp.array(rng.normal(size=(600, 500)), jnp.float32),
        "scale": jnp.array(rng.normal(size=5), jnp.float32),
        "steps": jnp.array(7),
        "more": [jnp.array(rng.normal(size=2), jnp.float32), jnp.array(rng.normal(size=3), jnp.bfloat16)],
        "rate": jnp.array(0.1, jnp.float32),
    }
    packed = Packed(tree)
    arrays = jax.jit(packed.pack)(tree)
    assert [array.shape for array in arrays] == [(188,), (3,), (1,), (600, 500)]
    back = jax.jit(packed.unpack)(arrays)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_the_quickest_program_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp

    from benchmarks.subjects import quickest

    first, second = quickest.Contender({}), quickest.Contender({"xla_cpu_enable_fast_math": "False"})
    monkeypatch.setitem(quickest.CANDIDATES, "cpu", (first, second))
    for slow, kept in ((0, second), (1, first)):
        found = quickest.Quickest(lambda x: x + 1, "cpu")
        compiling, disturbed = (0.0, 0.0), (9.0, 9.0)  # neither counts
        times = iter([*compiling, *disturbed, *([2.0 - slow, 1.0 + slow] * (quickest.TIMES - 1))])
        monkeypatch.setattr(quickest, "seconds", lambda *_, times=times: next(times))
        assert float(found(jnp.ones(()))) == 2
        assert [*found.programs] == [kept]
        assert float(found(jnp.ones(()))) == 2  # nothing is timed again: there are no more times
    assert str(first) == "XLA's defaults"
    assert str(second) == "--xla_cpu_enable_fast_math=False"


def test_a_program_is_timed_at_its_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.subjects import quickest

    now, waits = [0.0], iter([0.2, 0.05])

    def program() -> None:
        now[0] += next(waits)

    monkeypatch.setattr(quickest, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    assert quickest.seconds(program, ()) == pytest.approx(0.05)


def test_what_was_kept_is_said(measured: Path) -> None:
    found = json.loads(measured.read_text())
    found["rows"][0]["starts"] *= 3
    for start, options in enumerate(("a", "b", "a")):
        found["rows"][0]["starts"][start] = {**found["rows"][0]["starts"][start], "options": options}
    assert f"{found['rows'][0]['subject']} kept a (2 of 3 starts), b (1 of 3 starts)" in tables.tables(found)[0].notes


def test_how_many_start_at_a_time_is_said(measured: Path) -> None:
    found = results.load(measured)
    for builders in (1, 2):
        plan = RunPlan([SETTING], ["pytorch"], builders=builders)
        said = [line for line in tables.below({**found, "plan": plan.described()}) if "first step" in line]
        assert len(said) == builders - 1


def test_a_network_may_have_a_batch_of_its_own() -> None:
    networks = ["resnet50@8", "cifar_resnet20@128,1", "resnet18"]
    found = SettingGrid(networks, ["inference"], [2], ["float32"], "cpu", odd=True).settings()
    assert [(one.network, one.batch, one.size) for one in found] == [
        ("resnet50", 8, (225, 225)),
        ("cifar_resnet20", 128, (32, 32)),
        ("cifar_resnet20", 1, (32, 32)),
        ("resnet18", 2, (225, 225)),
    ]


def test_flags_are_subjects_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.measure.process import environment

    swept = [name for name, row in SUBJECTS.items() if row.swept]
    assert len(swept) > 10
    assert swept == [name for name in SUBJECTS if SWEPT in name]
    assert not any(SUBJECTS[name].swept for name in SpeedOptions(peers=True).subjects())
    assert {row.name for row in SUBJECTS.values() if row.swept} <= set(SpeedOptions(flags=True, quick=True).subjects())
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    own = SUBJECTS["nnx:fast-math"].environment
    assert environment(tmp_path, "cpu", own)["XLA_FLAGS"] == "--xla_one=1 --xla_cpu_enable_fast_math=true"


def test_the_fastest_is_no_row_of_a_sweep(measured: Path) -> None:
    found = json.loads(measured.read_text())
    rows = [row for row in found["rows"] if row["framework"] == "jax"]
    best = results.best(rows, "jax")
    assert best is not None
    best["subject"] = f"{best['subject']}{SWEPT}some-flag"
    assert results.best(rows, "jax") is not best


def test_a_flag_that_is_not_known_ends_its_subject_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected.prepare(SETTING, {}, tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    world = World(tmp_path, "cpu", tmp_path / "log")
    process = world.launch("nnx")
    assert world.wait([process], None)[0][1]["ready"]
    process.send("prepare", setting=SETTING.asdict())
    answer = world.wait([process], None)[0][1]
    process.close()
    assert answer["error"].startswith("its process ended: ")
    assert answer["error"].endswith("Unknown flag in XLA_FLAGS: --xla_no_such_flag=1")


def test_a_folded_subject_is_held_against_the_whole_network(tmp_path: Path) -> None:
    setting = Setting("cifar_resnet20", "inference", 2, "float32", (16, 16))
    expected.prepare(setting, {}, tmp_path)
    case = expected.read_case(setting, {}, tmp_path, folded=True)
    assert "conv1.bias" in case.weights
    assert "bn1.weight" not in case.weights
    assert Worker("nnx-folded", tmp_path).prepare(setting.asdict())["gate"]["ok"]


def test_an_exported_subject_runs_in_bfloat16(tmp_path: Path) -> None:
    """Its file takes images in the type of its parameters, float32."""
    setting = Setting("cifar_resnet20", "inference", 2, "bfloat16", (16, 16))
    expected.prepare(setting, {}, tmp_path)
    assert Worker("nnx-export", tmp_path).prepare(setting.asdict())["gate"]["ok"]


def test_every_subject_names_a_builder_that_is_there() -> None:
    for subject in SUBJECTS.values():
        module, _, function = subject.build.partition(":")
        assert f"def {function}(" in Path(roster.__file__).with_name(f"{module}.py").read_text(), subject.name


def test_a_table_for_readme(measured: Path) -> None:
    found = json.loads(measured.read_text())
    lines = tables.markdown(tables.tables(found)[0])
    assert lines[0] == "**tutorial_resnet, inference, batch 2, float32, 16x16**"
    assert lines[2].startswith("| subject | parity, of its bound | images/s |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_peak_of_memory_is_that_of_one_setting() -> None:
    from benchmarks.machine import process_memory

    large = np.ones(50_000_000)
    high = process_memory.peak()
    del large
    process_memory.forget()
    assert high - process_memory.peak() > 300e6
    low, again = process_memory.peak(), np.ones(25_000_000)
    assert process_memory.peak() - low > 150e6
    del again
