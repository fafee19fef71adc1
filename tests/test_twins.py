"""Published twins: the rows agree with the stored verdicts and the page; a changed twin turns the runner red."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
import torch
from twins import __main__ as command
from twins import catalogue, running, table
from twins.catalogue import ALL, TWINS, chosen
from twins.twin import MISMATCH, PARITY, Defect, Difference, Pair, Twin

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("quick")


class Normed(nn.Module):
    """A layer and its norm, with PyTorch's names; the rounding of the norm is Flax's setting."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.LayerNorm(epsilon=self.epsilon, name="1")(nn.Dense(4, name="0")(x))


def built(epsilon: float) -> Any:
    """Return what builds a small pair whose port has this epsilon; PyTorch's is 1e-5."""

    def build(twin: Twin, config: Any) -> Pair:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        dense, norm = (dict(layer.named_parameters()) for layer in net)
        params = {
            "0": {"kernel": dense["weight"].detach().numpy().T, "bias": dense["bias"].detach().numpy()},
            "1": {"scale": norm["weight"].detach().numpy(), "bias": norm["bias"].detach().numpy()},
        }
        return Pair(net, (Normed(epsilon), {"params": params}))

    return build


INPUTS: Mapping[str, np.ndarray] = {"input": np.random.default_rng(0).standard_normal((2, 3))}
SMALL = Twin("small", "math", "Small", lambda package: None, lambda: INPUTS, built(1e-5), ordered=True)
EPSILON = Difference("The norms round otherwise", "here", "there", layers="1", trap="ln-eps-1e-6")


def said(twin: Twin) -> list[str]:
    """Return the problems of a twin that is run."""
    return running.problems(twin, running.run(twin))


def test_a_twin_that_is_right_has_no_problems() -> None:
    assert said(SMALL) == []


def test_another_setting_of_a_twin_is_red_at_its_layer() -> None:
    changed = dataclasses.replace(SMALL, build=built(1e-6))
    problems = said(changed)
    assert problems[0].startswith("got mismatch, expected parity")
    assert any(line.startswith("a finding that is no known difference: 1 [") for line in problems)


def test_a_known_difference_must_be_told_and_nothing_else() -> None:
    different = dataclasses.replace(SMALL, build=built(1e-6))
    trap = running.run(different).findings[0].trap
    known = dataclasses.replace(EPSILON, trap=trap)
    assert said(dataclasses.replace(different, differences=(known,))) == []
    elsewhere = dataclasses.replace(known, layers="0")
    found = "\n".join(said(dataclasses.replace(different, differences=(elsewhere,))))
    assert "a finding that is no known difference: 1 [" in found
    assert "a difference that the check does not tell: The norms round otherwise" in found
    found = "\n".join(said(dataclasses.replace(SMALL, differences=(known,))))
    assert "got parity, expected mismatch" in found
    assert "a difference that the check does not tell" in found


def test_a_defect_that_is_mended_is_red_until_its_row_says_so() -> None:
    assert said(dataclasses.replace(SMALL, defect=Defect(MISMATCH, "why"))) == [
        "right now (parity); take `defect` out of the row"
    ]
    wrong = dataclasses.replace(SMALL, build=built(1e-6), defect=Defect(MISMATCH, "why"))
    assert said(wrong) == []
    assert said(dataclasses.replace(wrong, defect=Defect("refused", "why")))[0].startswith("got mismatch, expected the")


def test_advice_about_dropout_is_a_difference() -> None:
    line = "linen: PyTorch draws 7 dropout masks in a training step, the port 5; the check switched dropout off in both"
    got = running.Outcome("small", PARITY, advice=(line,))
    assert running.problems(SMALL, got) == [f"advice that is no known difference: {line}"]
    known = Difference("Flax drops less", "here", "there", advice="PyTorch draws 7 dropout masks")
    assert running.problems(dataclasses.replace(SMALL, differences=(known,)), got) == []


def test_the_command_exits_with_1_where_a_verdict_is_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "quiet", lambda: None)
    monkeypatch.setattr(running, "ready", lambda package: True)
    monkeypatch.setattr(catalogue, "TWINS", {"small": SMALL})
    monkeypatch.setattr(catalogue, "ALL", (SMALL,))
    assert command.main(["--json", str(tmp_path / "found.json")]) == 0
    assert '"verdict": "parity"' in (tmp_path / "found.json").read_text()
    monkeypatch.setattr(catalogue, "ALL", (dataclasses.replace(SMALL, build=built(1e-6)),))
    assert command.main([]) == 1
    assert "small: mismatch, WRONG" in capsys.readouterr().out


def test_a_name_that_is_no_twin_and_a_package_without_flax_are_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["brt"]) == 2
    assert "bert is nearest" in capsys.readouterr().err
    monkeypatch.setattr(running, "ready", lambda package: False)
    assert command.main(["bert"]) == 2
    assert "run make twins" in capsys.readouterr().err


def test_the_quick_selection_has_four_twins() -> None:
    assert len(chosen((), fast=True)) == 4
    assert len(TWINS) == len(ALL) >= 25


def test_every_difference_has_both_sources() -> None:
    for twin in ALL:
        for difference in twin.differences:
            assert bool(difference.layers) != bool(difference.advice), twin.name
            for source in (difference.pytorch, difference.flax):
                assert re.search(r"\w+/\w+\.py", source), (twin.name, source)


def test_the_stored_verdicts_are_those_of_the_rows() -> None:
    stored = table.load()["twins"]
    assert list(stored) == [twin.name for twin in ALL]
    for twin in ALL:
        one = dict(stored[twin.name])
        one["findings"] = tuple(running.Told(tuple(t["layers"]), t["trap"], t["text"]) for t in one["findings"])
        assert running.problems(twin, running.Outcome(**one)) == [], twin.name


def test_the_page_is_what_was_measured() -> None:
    stored = table.load()
    assert table.page(stored) == table.PAGE.read_text(), "run python -m tests.twins.table"
    changed = copy.deepcopy(stored)
    changed["twins"][ALL[0].name]["verdict"] = "refused"
    assert table.page(changed) != table.PAGE.read_text()


# What the twins need in other releases than the rest of the project.
OTHER = {"huggingface_hub", "tokenizers", "transformers"}


def pins(name: str) -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / name).read_text().split())


def test_the_twins_pins_are_the_projects_but_for_three() -> None:
    ours, theirs = pins("constraints.txt"), pins("constraints-twins.txt")
    assert {name for name in ours.keys() & theirs if ours[name] != theirs[name]} == OTHER
    assert (theirs["transformers"], theirs["diffusers"]) == ("4.57.6", "0.35.2")


@pytest.mark.skipif(not running.ready("transformers"), reason="transformers has no Flax classes here; run make twins")
def test_another_setting_of_a_published_twin_is_red() -> None:
    """BERT's Flax class with the epsilon of its norms changed: the runner names the norms."""
    bert = TWINS["bert"]

    def build(twin: Twin, config: Any) -> Pair:
        pair = bert.build(twin, config)
        module, variables = pair.port
        other = copy.deepcopy(config)
        other.layer_norm_eps = 1e-5
        return Pair(pair.reference, (module.clone(config=other), variables))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = said(dataclasses.replace(bert, build=build))
    assert problems[0].startswith("got mismatch, expected parity")
    assert any("LayerNorm" in line and "a finding that is no known difference" in line for line in problems)


def cited(twin: Twin) -> list[tuple[str, Path, list[int]]]:
    """Return the sentence, the file and the lines of each source of a twin's differences."""
    found = importlib.util.find_spec(twin.package)
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    sentences = [text for difference in twin.differences for text in (difference.pytorch, difference.flax)]
    return [
        (text, package / path, [int(n) for n in re.findall(r"\d+", lines)])
        for text in sentences
        for path, lines in re.findall(r"(models/[\w/]+\.py):(\d+(?: and \d+)?)", text)
    ]


def missing(text: str, file: Path, lines: list[int]) -> list[str]:
    """Return what a sentence names and its file does not hold: lines with a word of it, and its classes."""
    code = file.read_text()
    words = set(re.findall(r"\w{4,}", text)) - {"self", "from", "calls", "makes", "takes", "models"}
    at = code.splitlines()
    found = [f"{file.name}:{n}" for n in lines if not words & set(re.findall(r"\w+", at[n - 1]))]
    classes = re.findall(r"\b(\w*[A-Z]\w*)\.\w+", text.replace("nn.", "").replace("flax.linen.", ""))
    return found + [name for name in classes if f"class {name}" not in code and name != "BatchNorm"]


@pytest.mark.skipif(not running.ready("transformers"), reason="transformers has no Flax classes here; run make twins")
@pytest.mark.parametrize("name", [twin.name for twin in ALL if twin.differences])
def test_published_sources_say_what_the_rows_say(name: str) -> None:
    sources = cited(TWINS[name])
    assert sources
    assert [missing(*source) for source in sources] == [[]] * len(sources)
    text, file, _ = sources[0]
    assert missing(text, file, [1])[:1] == [f"{file.name}:1"], "a wrong line goes unseen"
