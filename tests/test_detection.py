"""The score of the check: a sample of the planted mistakes is found, and the score itself can turn red."""

from __future__ import annotations

import json
import pkgutil
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import meta as score
import pytest
from meta import __main__ as command
from meta import faithful
from meta.planted import Case

import parity
from parity.reports.report import Finding, Model, Report, Row
from parity.traps import catalogue

pytestmark = pytest.mark.usefixtures("quick")

# One mistake of each kind of surroundings.
SAMPLE = {
    "weight": ("attention-qkv-order", "layers-in-sorted-order"),
    "layer": ("bn-running-var", "attention-padding-seen", "bn-statistics-constant"),
    "loss": ("loss-weighted-mean-over-n", "loss-ignored-wraps"),
    "training": ("adamw-decay-coupled", "amsgrad-of-corrected", "clip-epsilon-missing", "cosine-stays"),
    "between": (
        "rotary-is-half-split",
        "attention-misses-itself",
        "norm-bias-missing",
        "heads-depth-first",
        "relu-missing",
        "relu-gradient-half",
        "input-bgr",
        "backward-half-reversed",
        "pixel-shuffle-order",
    ),
}
CHOSEN = [
    (family, next(c for c in score.CASES[family] if c.trap == name)) for family in SAMPLE for name in SAMPLE[family]
]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("family", "case"), CHOSEN, ids=[case.trap for _, case in CHOSEN])
def test_planted_mistake_is_found_and_named(family: str, case: Case) -> None:
    result = score.run(family, case)
    assert result.ok, result


def test_every_entry_is_planted_and_nothing_else() -> None:
    assert score.without_case() == []
    known = {(trap.place, trap.name) for trap in catalogue.TRAPS}
    assert {(family, case.trap) for family, cases in score.CASES.items() for case in cases} <= known


def test_entries_have_names_of_their_own_and_sources() -> None:
    assert len(catalogue.TRAPS) >= 366
    counts = Counter((trap.place, trap.name) for trap in catalogue.TRAPS)
    assert [name for name, count in counts.items() if count > 1] == []
    assert [trap.name for trap in catalogue.TRAPS if not trap.source] == []


PACKAGES = ("torch", "jax", "flax", "optax", "numpy")
GUIDES = {"Flax guide": "Convert PyTorch models to Flax", "torchvision.models": "Using the pre-trained models"}


# An issue, a pull request or a commit of a project on GitHub.
PROJECT = re.compile(r"[\w.-]+/[\w.-]+(#\d+|@[0-9a-f]{7,40})")


WORDS = re.compile(r"Note|(section|figure|equation|table) [\d.]+|\w+( et al\.)?")


def is_there(source: str) -> bool:
    """Return whether a reader finds a source.

    That is a name of an installed framework, a paper with its year, a guide, or an issue or commit of a project.
    """
    found = False
    for part in re.split(r"[;,] | and ", source):
        name, _, _ = part.partition(":")
        if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and name.partition(".")[0] in PACKAGES:
            try:
                found = pkgutil.resolve_name(name) is not None
            except (ImportError, AttributeError):
                return False
        elif PROJECT.fullmatch(part) or re.search(r"\b(19|20)\d\d\b|arXiv:\d{4}\.\d+", part) or part in GUIDES:
            found = True
        elif name.startswith("torchvision."):
            found = True  # not installed here
        elif part not in GUIDES.values() and not WORDS.fullmatch(part):
            return False
    return found


def test_a_reader_finds_every_source() -> None:
    assert [(trap.name, trap.source) for trap in catalogue.TRAPS if not is_there(trap.source)] == []
    assert not is_there("bn_momentum: flax.linen.BatchNorm: momentum")  # the name of a file that nobody has
    assert not is_there("flax.linen.BatchNorms")
    assert not is_there("a bug in keras-hub")


def test_a_place_is_a_name_without_its_dimensions() -> None:
    """A function's own last letters stay: `pad` is no `pa` in one dimension."""
    places = {place for trap in catalogue.TRAPS for place in trap.places}
    assert {"pad", "add", "unbind", "Conv", "max_pool"} <= places
    assert not {"pa", "a", "unbin", "Conv2d", "max_pool2d"} & places


def test_many_entries_come_from_bugs_of_projects() -> None:
    assert sum(PROJECT.fullmatch(trap.source) is not None for trap in catalogue.TRAPS) >= 95


CASE = score.CASES["between"][0]


def report(*findings: Finding, ok: bool = False) -> Report:
    return Report((Model("net", (Row("nnx", "output.eval", "output", 1.0, 0.0, ok),), findings=findings),))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (report(Finding("nnx", CASE.layer, CASE.trap, "")), (True, True, True)),
        (report(ok=True), (False, False, False)),
        (report(Finding("nnx", "elsewhere", CASE.trap, "")), (True, False, False)),
        (report(Finding("nnx", CASE.layer, "another", "")), (True, True, False)),
        (report(Finding("nnx", CASE.layer, CASE.trap, ""), Finding("nnx", "x", None, "")), (True, True, False)),
    ],
    ids=["found", "passes everything", "another layer", "another name", "one finding too many"],
)
def test_what_the_check_says_is_counted(
    said: Report, expected: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "check", lambda *_, **__: said, raising=False)
    result = score.run("between", CASE)
    assert (result.caught, result.layer, result.name) == expected
    assert score.Score((result,)).ok is all(expected)


GOOD = score.Result("layer", "a", True, True, True, "", 0.0)
RUN = faithful.Result(1, "lstm", "float32", True, 2.0, "nnx loss")


@pytest.mark.parametrize(
    ("found", "ok"),
    [
        (score.Score((GOOD,) * 20, (RUN,)), True),
        (score.Score((*(GOOD,) * 19, replace(GOOD, name=False)), (RUN,)), True),
        (score.Score((*(GOOD,) * 18, *(replace(GOOD, name=False),) * 2)), False),
        (score.Score((*(GOOD,) * 99, replace(GOOD, caught=False))), False),
        (score.Score((GOOD,), (RUN, replace(RUN, ok=False))), False),
        (score.Score((GOOD,), unplanted=("layer: b",)), False),
        (score.Score(()), False),
    ],
    ids=[
        "all",
        "19 of 20 names",
        "18 of 20 names",
        "one not caught",
        "a false alarm",
        "an entry without a case",
        "none",
    ],
)
def test_targets(found: score.Score, ok: bool) -> None:
    assert found.ok is ok
    assert any("NOT" in line for line in score.lines(found)) is not ok


def test_command_turns_red_with_a_check_that_passes_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "check", lambda *_, **__: report(ok=True), raising=False)
    monkeypatch.setattr(score, "SAMPLE", 3)
    file = tmp_path / "score.json"
    assert command.main(["--json", str(file)]) == 1
    said = json.loads(file.read_text())
    assert said["caught"] == 0
    assert said["cases"] > 0
    assert not said["ok"]
    assert "not caught" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--faithful", "-1"], ["--json", "/nowhere/at/all.json"]])
def test_bad_options_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
