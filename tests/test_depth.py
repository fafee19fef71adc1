"""The study of depth: its images, its first steps in both frameworks, and what it shows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ports
from benchmarks.__main__ import main
from benchmarks.depth import images, plot, study, worker
from benchmarks.depth.plan import FRAMEWORKS, GROUPS, NETWORKS, PLANS, DepthPlan, plan_for
from ports.errors import UserError

FILE = Path(__file__).parent / "data" / "cifar10.npz"
SMALL = DepthPlan(steps=4, batch=16, size=8, exact_steps=2, test_every=2)
LABEL = "convs-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own images of CIFAR-10, as those who train and as those who are tested."""
    folder = tmp_path_factory.mktemp("cifar")
    with np.load(FILE) as held:
        for split in ("train", "test"):
            np.savez(folder / f"cifar10_{split}.npz", images=held["images"], labels=held["labels"])
    return folder


def job(label: str, framework: str, data: Path, folder: Path, plan: DepthPlan = SMALL) -> worker.DepthJob:
    weights = folder / f"{label}.safetensors"
    if not weights.exists():
        ports.weights.save(weights, ports.weights.read(ports.create(NETWORKS[label].spec, "pytorch", seed=0)))
    return worker.DepthJob(
        label, framework, str(weights), str(data), str(folder / framework), "cpu", dataclasses.asdict(plan)
    )


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the process of each framework finds."""
    own = tmp_path_factory.mktemp("jobs")
    return {framework: worker.JobRun(job(LABEL, framework, folder, own)).run() for framework in FRAMEWORKS}


def results(trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    row = study.network_row(NETWORKS[LABEL], trained)
    return {"schema": study.SCHEMA, "kind": study.KIND, "networks": [row], "plan": {}}


def test_every_group_has_networks() -> None:
    assert {row.group for row in NETWORKS.values()} == set(GROUPS)
    assert [row.number for row in NETWORKS.values() if row.group == "plain"] == [20, 56, 110]


@pytest.mark.parametrize("depth", [20, 56])
def test_a_plain_network_is_the_residual_one_without_its_shortcuts(depth: int) -> None:
    plain, residual = (NETWORKS[f"{kind}-{depth}"] for kind in ("plain", "residual"))
    weights = [ports.weights.read(ports.create(row.spec, "pytorch", seed=0)) for row in (plain, residual)]
    assert list(weights[0]) == list(weights[1])
    assert sum(array.ndim > 1 for array in weights[0].values()) == depth
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_images_are_normalised_and_averaged(folder: Path) -> None:
    with np.load(FILE) as held:
        pixels = held["images"][3].astype(float)
    found = images.load(folder, "train", 16)
    assert found.images.shape == (300, 3, 16, 16)
    mean = pixels[2:4, 6:8].mean((0, 1)) / 255
    np.testing.assert_allclose(found.images[3, :, 1, 3], (mean - images.MEAN) / images.STD, rtol=1e-12)
    whole = images.load(folder, "test", 32)
    np.testing.assert_allclose(whole.images[3, 1, 5, 7], (pixels[5, 7, 1] / 255 - 0.456) / 0.224, rtol=1e-12)


def test_the_binary_version_holds_the_same(folder: Path, tmp_path: Path) -> None:
    with np.load(FILE) as held:
        rows = np.concatenate([held["labels"][:, None], held["images"].transpose(0, 3, 1, 2).reshape(300, -1)], 1)
    for i, part in enumerate(np.array_split(rows, 2), 1):
        part.tofile(tmp_path / f"data_batch_{i}.bin")
    found, expected = images.load(tmp_path, "train", 32), images.load(folder, "train", 32)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_every_image_is_seen_once_before_any_is_seen_twice() -> None:
    taken = np.concatenate(list(images.batches(10, 4, 5, seed=0)))
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert list(taken) != list(np.concatenate(list(images.batches(10, 4, 5, seed=1))))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cifar10_train.npz", b"nothing", "cannot be read as images"),
        ("data_batch_1.bin", b"12345", "cannot be read as images"),
        ("data_batch_1.bin", bytes([10]) + bytes(3072), "labels below 10"),
    ],
)
def test_other_files_are_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        images.load(tmp_path, "train", 32)


def test_no_images_and_a_wrong_size_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no train images of CIFAR-10"):
        images.load(tmp_path, "train", 32)
    with pytest.raises(UserError, match="got 12, expected a divisor of 32"):
        images.load(folder, "train", 12)


def test_both_frameworks_take_the_same_first_steps(trained: dict[str, dict[str, Any]]) -> None:
    row = study.network_row(NETWORKS[LABEL], trained)
    assert row["agreement"]["ok"]
    assert row["agreement"]["distance"] < 1e-13
    assert set(row["curves"]) == set(FRAMEWORKS)
    for framework in FRAMEWORKS:
        curves = row["curves"][framework]
        assert curves["at"] == [0, 2, 3]
        assert len(curves["loss"]) == SMALL.steps
        assert all(len(norms) == len(row["layers"]) and min(norms) > 0 for norms in curves["gradient"])
        assert all(0 <= error <= 1 for error in curves["test_error"] + curves["train_error"])


def test_the_gradients_are_those_of_float64(trained: dict[str, dict[str, Any]]) -> None:
    exact, quick = trained["pytorch"]["exact"]["gradient"][0], trained["nnx"]["curves"]["gradient"][0]
    np.testing.assert_allclose(quick, exact, rtol=1e-4)


def test_another_momentum_in_flax_is_no_parity(
    trained: dict[str, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    """The first loss is the same; the third step's shows it."""
    plan = dataclasses.replace(SMALL, momentum=0.8, exact_steps=3)
    runs = [worker.JobRun(job(LABEL, f, folder, tmp_path, plan)).exact(0) for f in FRAMEWORKS]
    right = dataclasses.replace(plan, momentum=0.9)
    reference = worker.JobRun(job(LABEL, "pytorch", folder, tmp_path, right))
    exact, moved = reference.exact(0), [reference.exact(1)]
    assert study.agreement(runs[0], moved, runs[1]).ok
    judged = study.agreement(exact, moved, runs[1])
    assert not judged.ok
    assert "step 3" in judged.where
    row = study.network_row(
        NETWORKS[LABEL],
        {"pytorch": trained["pytorch"] | {"exact": exact, "moved": moved}, "nnx": trained["nnx"] | {"exact": runs[1]}},
    )
    assert row["curves"] == {}
    assert "no parity" in "".join(next(plot.rows({"networks": [row]})))


def test_nan_is_no_agreement() -> None:
    steps = {"loss": [1.0], "gradient": [[1.0, 2.0]]}
    broken = {"loss": [1.0], "gradient": [[1.0, math.nan]]}
    assert study.agreement(steps, [steps], steps).ok
    assert not study.agreement(steps, [steps], broken).ok


def test_the_plot_and_the_table_show_both_frameworks(trained: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    found = results(trained)
    study.save(found, tmp_path / "depth.json")
    assert study.load_results(tmp_path / "depth.json") == json.loads(json.dumps(found))
    assert [row[:2] for row in plot.rows(found)] == [(LABEL, "PyTorch"), (LABEL, "Flax NNX")]
    svg = plot.draw(found)
    assert svg.startswith("<svg")
    assert svg == plot.draw(found)


def test_stored_results_are_shown(
    trained: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.save(results(trained), tmp_path / "depth.json")
    svg = tmp_path / "depth.svg"
    assert main(["depth", "--from", str(tmp_path / "depth.json"), "--svg", str(svg)]) == 0
    assert "convs-1  Flax NNX" in capsys.readouterr().out
    assert svg.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data, --from: got neither"),
        (["--data", ".", "--from", "x.json"], "--data, --from: got both"),
        (["--data", ".", "--networks", "plain-21"], "--networks: got 'plain-21', expected some of plain-20"),
        (["--data", "."], "no train images of CIFAR-10"),
        (["--data", ".", "--steps", "0"], "--steps: got 0, expected more than 0"),
        (["--from", "absent.json"], "absent.json: cannot be read"),
        (["--from", "x.json", "--out", "y.json", "--steps", "3"], "--from: got --steps, --out too, expected none"),
        (["--from", "README.md"], "README.md: got no JSON"),
        (["--from", "benchmarks/results/check-cost-cpu.json"], "got another kind of file, expected one of"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--device", "cpu"] if "--from" not in arguments else []
    assert main(["depth", *device, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_plan_is_the_devices_but_for_what_is_given() -> None:
    assert plan_for("cpu") == PLANS["cpu"]
    assert plan_for("gpu", steps=7, batch=None) == dataclasses.replace(PLANS["gpu"], steps=7)


def test_a_process_that_fails_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.sys, "executable", "false")
    with pytest.raises(UserError, match=r"convs-1 in pytorch: its process ended with 1: it said nothing"):
        study.Study([NETWORKS[LABEL]], SMALL, folder, "cpu", 1).run(lambda said: None)


@pytest.mark.nightly
def test_the_command_trains_in_processes_of_its_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "depth.json"
    given = ["--networks", LABEL, "--steps", "2", "--batch", "16", "--image-size", "8", "--device", "cpu"]
    assert main(["depth", "--data", str(folder), *given, "--out", str(out)]) == 0
    [network] = study.load_results(out)["networks"]
    assert network["agreement"]["ok"]
    assert network["label"] == LABEL
