"""Published ports: the rows agree with the stored verdicts and the page; a changed port turns the runner red."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flax import nnx
from twins import running
from twins.published import __main__ as command
from twins.published import catalogue, others, table
from twins.published.catalogue import ALL
from twins.published.inputs import numbers
from twins.published.port import Built, Project, Published
from twins.published.running import missing, run
from twins.twin import Difference

from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

HERE = Project("somebody/small", "0" * 40)


def built(epsilon: float) -> Callable[[Path], Built]:
    """Return what builds a small pair whose port has this epsilon; PyTorch's is 1e-5."""

    def build(clones: Path) -> Built:
        reference = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        rngs = nnx.Rngs(0)
        port = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs))
        return Built(reference, port, (numbers(2, 3),))

    return build


SMALL = Published("small", HERE, "small.Small", "torch.nn.Sequential", built(1e-5))
EPSILON = Difference("The norms round otherwise", "here", "there", layers="1", trap="norm-epsilon-1e-6")


def said(row: Published) -> list[str]:
    """Return the problems of a port that is checked."""
    return running.problems(row, run(row, Path()))


def test_a_port_gets_its_weights_and_is_right() -> None:
    assert said(SMALL) == []


def test_a_port_with_another_setting_is_red_at_its_layer() -> None:
    wrong = dataclasses.replace(SMALL, build=built(1e-6))
    problems = said(wrong)
    assert problems[0].startswith("got mismatch, expected parity: 1 [")
    assert not any("weights-not-moved" in line for line in problems)
    known = dataclasses.replace(EPSILON, trap=run(wrong, Path()).findings[0].trap)
    assert said(dataclasses.replace(wrong, differences=(known,))) == []


def test_a_move_that_is_refused_is_an_outcome() -> None:
    def build(clones: Path) -> Built:
        return Built(torch.nn.Linear(3, 4), nnx.Linear(3, 5, rngs=nnx.Rngs(0)), (numbers(2, 3),))

    got = run(dataclasses.replace(SMALL, build=build), Path())
    assert got.verdict == "refused"
    assert got.reason.startswith("parity.move: ")


def test_a_missing_clone_is_one_line_that_says_what_to_clone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        HERE.use(tmp_path)
    told = str(error.value)
    assert f"git clone https://github.com/somebody/small {tmp_path / 'small'}" in told
    assert HERE.commit in told
    assert "\n" not in told


def test_a_clone_at_another_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    clone = tmp_path / "small"
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    with pytest.raises(UserError, match="checkout 000000"):
        HERE.use(tmp_path)
    here = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    dataclasses.replace(HERE, commit=here).use(tmp_path)
    assert sys.path[-1] == str(clone.resolve())


def test_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([str(tmp_path), "bonsai-resnt"]) == 2
    assert "bonsai-resnet is nearest" in capsys.readouterr().err
    assert command.main([str(tmp_path), "bonsai-resnet"]) == 2
    assert "git clone https://github.com/jax-ml/bonsai" in capsys.readouterr().err
    lacking = dataclasses.replace(SMALL, needs=("no-such-package",))
    assert missing([lacking]) == ["no-such-package"]
    monkeypatch.setattr(catalogue, "ALL", (lacking,))
    assert command.main([str(tmp_path)]) == 2
    assert "pip install no-such-package" in capsys.readouterr().err


def test_the_command_exits_with_1_where_a_verdict_is_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "quiet", lambda: None)
    monkeypatch.setattr(Project, "use", lambda self, clones: None)
    monkeypatch.setattr(catalogue, "ALL", (SMALL,))
    assert command.main([str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    assert '"verdict": "parity"' in (tmp_path / "found.json").read_text()
    monkeypatch.setattr(catalogue, "ALL", (dataclasses.replace(SMALL, build=built(1e-6)),))
    assert command.main([str(tmp_path)]) == 1
    assert "small: mismatch, WRONG" in capsys.readouterr().out


def test_a_tutorial_gives_its_classes_and_runs_nothing_else(tmp_path: Path) -> None:
    port = "class Port:\n    def run(self):\n        return jax"
    cells = ("%%bash\nif [ -f x ]; then y", "!pip install x\nimport jax", "import nowhere\nraise ValueError", port)
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n" + "\n\nText.\n\n".join(f"{others.CELL}\n{cell}\n```" for cell in cells))
    run = others.defined(page)["Port"]().run
    assert run().__name__ == "jax"
    at = run.__code__.co_firstlineno - 1
    assert page.read_text().splitlines()[at].strip() == "def run(self):", "a line is not that of the page"


def test_every_difference_has_both_sources() -> None:
    assert len({row.name for row in ALL}) == len(ALL)
    for row in ALL:
        assert re.fullmatch(r"[0-9a-f]{40}", row.project.commit), row.name
        for difference in row.differences:
            assert bool(difference.layers) != bool(difference.advice), row.name
            for source in (difference.pytorch, difference.flax):
                assert re.search(r"[\w/]+\.(py|md):\d+", source), (row.name, source)


def test_the_stored_verdicts_are_those_of_the_rows() -> None:
    stored = table.load()["ports"]
    assert list(stored) == [row.name for row in ALL]
    for row in ALL:
        one = dict(stored[row.name])
        one["findings"] = tuple(running.Told(tuple(t["layers"]), t["trap"], t["text"]) for t in one["findings"])
        assert running.problems(row, running.Outcome(**one)) == [], row.name


def test_the_page_is_what_was_measured() -> None:
    stored = table.load()
    assert table.page(stored) == table.PAGE.read_text(), "run python -m tests.twins.published.table"
    changed = copy.deepcopy(stored)
    changed["ports"][ALL[0].name]["verdict"] = "refused"
    assert table.page(changed) != table.PAGE.read_text()
