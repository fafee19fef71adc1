"""What changed between two results, what of it is worse, and one clear line for every file that is none."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity.commands.cli import main
from parity.reports import diff
from parity.reports.report import Cost, Divergence, Finding, Model, Point, Report, Row

JSON = dict[str, Any]
PORTS, ROWS = ("nnx", "linen"), ("output.eval", "layer.eval", "loss")
NET, WRONG = 0, 1  # networks of `result`


def result() -> JSON:
    """A network that is equal, and one with a mistake in one port, as a file holds them."""
    equal = [Row(port, quantity, "fc", 1e-15, 1e-14, True) for port in PORTS for quantity in ROWS]
    wrong = [Row("nnx", quantity, "fc", 1e-3, 1e-14, False) for quantity in ROWS]
    models = (
        Model("net", tuple(equal), note="2 images", profile={"nnx": {"layer.eval": (Point("fc", 0.0, 1e-14, True),)}}),
        Model(
            "wrong",
            tuple(wrong),
            Divergence("nnx", "fc", "layer.eval"),
            findings=(Finding("nnx", "fc", "bias-lost", ""),),
            costs=(Cost("nnx", 1e-3),),
        ),
    )
    report = Report(models, {"torch": "2.13", "jax": "0.10", "date": "2026-01-01"})
    return json.loads(json.dumps(report.to_json(), allow_nan=False))


def row(file: JSON, model: int = NET, i: int = 0) -> JSON:
    return file["models"][model]["rows"][i]


def finding(layer: str, trap: str | None = None, port: str = "nnx") -> JSON:
    return {"port": port, "layer": layer, "trap": trap, "text": "it is wrong; put it right"}


def without_port(file: JSON) -> None:
    file["models"][NET]["rows"] = [r for r in file["models"][NET]["rows"] if r["port"] != "linen"]


def set_findings(*found: JSON) -> Callable[[JSON], None]:
    return lambda file: file["models"][WRONG].update(findings=list(found))


Edit = Callable[[JSON], Any]
# What is done to the second file; what changes by it; the judgement, and the one where the files are exchanged.
CHANGES: dict[str, tuple[Edit, str, str, str]] = {
    "row-differs": (lambda f: row(f).update(ok=False), "output.eval", "worse", "better"),
    "row-gone": (lambda f: f["models"][NET]["rows"].pop(2), "loss", "worse", ""),
    "row-gone-that-was-wrong": (lambda f: f["models"][WRONG]["rows"].pop(2), "loss", "", "worse"),
    "distance-grows": (lambda f: row(f).update(distance=2e-14), "output.eval", "", ""),
    "distance-is-not-finite": (lambda f: row(f, WRONG).update(distance=None), "output.eval", "", ""),
    "distance-from-zero": (lambda f: row(f).update(distance=0.0), "", "", ""),
    "distance-a-little": (lambda f: row(f).update(distance=9e-15), "", "", ""),
    "rounding-alone": (lambda f: (row(f).update(distance=1e-17), row(f, i=1).update(distance=2e-16)), "", "", ""),
    "tensor": (lambda f: row(f).update(tensor="conv1"), "output.eval", "", ""),
    "network-gone": (lambda f: f["models"].pop(NET), "network", "worse", ""),
    "network-gone-that-was-wrong": (lambda f: f["models"].pop(WRONG), "network", "worse", "worse"),
    "port-gone": (without_port, "port", "worse", ""),
    "undecided": (lambda f: f["models"][NET].update(undecided="too wide", ok=False), "cannot tell", "worse", "better"),
    "setting": (lambda f: f["models"][NET].update(note="4 images"), "setting", "", ""),
    "finding": (set_findings(finding("fc", "bias-lost"), finding("conv1")), "finding at conv1", "worse", "better"),
    "finding-again": (
        set_findings(finding("fc", "bias-lost"), finding("fc", "bias-lost")),
        "finding at fc",
        "worse",
        "better",
    ),
    "finding-of-another-name": (set_findings(finding("fc")), "finding at fc", "", ""),
    "finding-in-other-words": (set_findings(finding("fc", "bias-lost") | {"text": "other"}), "", "", ""),
    "environment": (lambda f: f["environment"].update(jax="0.11"), "", "", ""),
}


def differences(a: JSON, b: JSON, **options: float) -> list[diff.Change]:
    return diff.compare(a, b, **options)


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("exchanged", [False, True], ids=["forth", "back"])
def test_a_change_is_found_and_judged(case: str, exchanged: bool) -> None:
    edit, what, *judgements = CHANGES[case]
    before, after = result(), result()
    edit(after)
    if exchanged:
        before, after = after, before
    found = differences(before, after)
    assert [change.what for change in found] == ([what] if what else [])
    assert [change.judgement for change in found] == ([judgements[exchanged]] if what else [])


def test_the_same_result_has_not_changed() -> None:
    assert differences(result(), result()) == []


def test_two_networks_of_one_name_are_held_apart() -> None:
    before = result()
    before["models"].append(copy.deepcopy(before["models"][NET]))
    after = copy.deepcopy(before)
    row(after, 2).update(ok=False)
    assert [(c.model, c.what, c.judgement) for c in differences(before, after)] == [("net", "output.eval", "worse")]
    assert [c.what for c in differences(before, result())] == ["network"]


@pytest.mark.parametrize(
    ("distances", "ratio", "shown"),
    [
        ((1e-15, 3e-14), 30.0, ("ok 1.0e-15 fc", "ok 3.0e-14 fc")),
        ((1e-3, 1e-15), 1e-12, ("ok 1.0e-03 fc", "ok 1.0e-15 fc")),
        ((0.0, 1e-3), None, ("ok 0.0e+00 fc", "ok 1.0e-03 fc")),
        ((1e-15, None), None, ("ok 1.0e-15 fc", "ok not finite fc")),
        ((None, 1e-15), None, ("ok not finite fc", "ok 1.0e-15 fc")),
        ((10**299, 1e-15), 1e-314, ("ok 1.0e+299 fc", "ok 1.0e-15 fc")),
        ((math.nan, 1e-15), None, ("ok not finite fc", "ok 1.0e-15 fc")),
    ],
)
def test_a_distance_is_given_as_a_ratio(
    distances: tuple[float | None, float | None], ratio: float | None, shown: tuple[str, str]
) -> None:
    files = result(), result()
    for file, distance in zip(files, distances, strict=True):
        row(file)["distance"] = distance
    (change,) = differences(*files)
    assert change.ratio == (None if ratio is None else pytest.approx(ratio))
    assert (change.before, change.after) == shown


@pytest.mark.parametrize(("times", "seen"), [(2.0, True), (4.0, True), (6.0, False)])
def test_what_is_notable_can_be_chosen(times: float, seen: bool) -> None:
    after = result()
    row(after)["distance"] = 5e-15
    assert bool(differences(result(), after, times=times)) == seen
    assert bool(differences(after, result(), times=times)) == seen


def test_a_result_without_findings_is_not_compared_by_them() -> None:
    """As earlier versions wrote it."""
    before = result()
    for model in before["models"]:
        for key in ("findings", "undecided", "profile"):
            del model[key]
    assert differences(before, result()) == []


def test_the_environment_but_not_the_date() -> None:
    before, after = result(), result()
    after["environment"] = {"torch": "2.14", "flax": "0.12", "date": "2027-01-01"}
    expected = [("torch", "2.13", "2.14"), ("jax", "0.10", "–"), ("flax", "–", "0.12")]
    assert diff.environment(before, after) == expected


def write(folder: Path, name: str, content: JSON | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


@pytest.mark.parametrize("case", ["row-differs", "distance-grows", "network-gone", "finding", "environment"])
def test_the_command(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, what, judgement, _ = CHANGES[case]
    after = result()
    edit(after)
    files = write(tmp_path, "a.json", result()), write(tmp_path, "b.json", after)
    assert main(["diff", *files]) == (1 if judgement == "worse" else 0)
    out, err = capsys.readouterr()
    assert err == ""
    assert what in out
    assert ("jax: 0.10 → 0.11" in out) == (case == "environment")
    last = "none; networks: 2" if not what else "1 worse" if judgement else "1 neither better nor worse"
    assert out.splitlines()[-1] == f"changes: {last}"


def spoiled(edit: Edit) -> bytes:
    file = result()
    edit(file)
    return json.dumps(file).encode()


# What the second file holds; what the line says.
BAD: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "b.json: no such file; expected a file of `parity check --json`"),
    "empty": (b"", "not JSON at line 1 column 1"),
    "text": (b"parity", "not JSON at line 1"),
    "binary": (b"\x80\xff", "not JSON; expected a whole file"),
    "truncated": (json.dumps(result()).encode()[:400], "not JSON at line 1 column"),
    "deep": (b"[" * 100_000, "not JSON; expected a whole file"),
    "list": (b"[]", "got no schema, expected schema 1"),
    "number": (b"1", "got no schema, expected schema 1"),
    "no-schema": (b"{}", "got no schema, expected schema 1"),
    "schema-2": (spoiled(lambda f: f.update(schema=2)), "got schema 2, expected schema 1"),
    "schema-true": (spoiled(lambda f: f.update(schema=True)), "got schema True, expected schema 1"),
    "no-models": (spoiled(lambda f: f.pop("models")), "models: is missing"),
    "models-of-another-type": (spoiled(lambda f: f.update(models={})), "models: got dict, expected list"),
    "model-of-another-type": (spoiled(lambda f: f.update(models=[1])), "models[0]: got int, expected dict"),
    "row-lacks-a-key": (spoiled(lambda f: row(f).pop("ok")), "models[0].rows[0].ok: is missing"),
    "distance-is-text": (
        spoiled(lambda f: row(f, WRONG, 2).update(distance="small")),
        "models[1].rows[2].distance: got str, expected float or int or NoneType",
    ),
    "number-of-many-digits": (
        json.dumps(result()).replace('"schema": 1', f'"schema": {"1" * 5000}').encode(),
        "got schema inf, expected schema 1",
    ),
    "finding-lacks-a-key": (spoiled(set_findings({"port": "nnx"})), "models[1].findings[0].layer: is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = BAD[case]
    good = write(tmp_path, "a.json", result())
    bad = str(tmp_path / "b.json") if content is None else write(tmp_path, "b.json", content)
    for files in ((good, bad), (bad, good)):
        assert main(["diff", *files]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"parity: {bad}: ")
        assert err.count("\n") == 1
        assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.json"], "Missing argument 'AFTER'"),
        (["a.json", ".", "--times", "1"], "--times: got 1.0, expected a number above 1"),
        (["a.json", ".", "--times", "nan"], "--times: got nan"),
        (["a.json", "."], "cannot be read: Is a directory"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, "a.json", result())
    monkeypatch.chdir(tmp_path)
    assert main(["diff", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
