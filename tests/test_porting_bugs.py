"""Replayed bugs of projects: three of them are run, and the page is what was measured."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from meta import porting_bugs
from meta.porting_bugs import Bug, rivals, running, table
from meta.porting_bugs import __main__ as command

from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

# Of different kinds, in NNX and in Linen, of which one shows in training alone.
SAMPLE = ("batch_norm_momentum_default", "gelu_default_is_tanh", "rope_interleaved")


@functools.cache
def outcome(name: str) -> running.Outcome:
    return running.run(porting_bugs.load(name))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_bug_is_what_is_stored(name: str) -> None:
    stored = table.load()["bugs"][name]
    got = dataclasses.asdict(outcome(name))
    assert {field: stored[field] for field in got if field != "text"} == {f: got[f] for f in got if f != "text"}
    assert (got["passes"], got["caught"], got["place"], got["named"]) == (True,) * 4


@pytest.mark.nightly
def test_a_bug_whose_wrong_version_is_right_is_red() -> None:
    bug = porting_bugs.load(SAMPLE[1])
    right = dataclasses.replace(bug, port=lambda wrong: bug.port(False))
    got = running.run(right)
    assert (got.passes, got.caught, got.place, got.named, got.wrong) == (True, False, False, False, "parity")
    assert not any(got.finds.values())
    assert table.missed({**running.row(right), **dataclasses.asdict(got)}).startswith("not caught, place, named")


@pytest.mark.nightly
def test_a_bug_whose_right_version_is_wrong_is_red() -> None:
    bug = porting_bugs.load(SAMPLE[1])
    got = running.run(dataclasses.replace(bug, port=lambda wrong: bug.port(True)))
    assert not got.passes
    assert got.rejects_right == got.finds


def test_a_finding_elsewhere_or_of_another_kind_does_not_count() -> None:
    bug = porting_bugs.load("rope_interleaved")
    places = {"layers.0.self_attn": True, "layers.0": True, "layers.0.self_attn.q_proj": True, "layers": False,
              "layers.0.input_layernorm": False, "layers.1.self_attn": False, "(the network)": False}  # fmt: skip
    assert {place: running.is_at(place, bug.layers) for place in places} == places
    assert running.is_at("norm", ["norm"])
    assert running.is_at("(the network)", ["norm"])
    assert not running.is_at("", ["norm"])
    assert running.is_named(bug, "rotary-is-half-split", "")
    assert not running.is_named(bug, "attention-unscaled", "the scores are not scaled")
    sinks = porting_bugs.load("attention_sinks_unused")
    assert running.is_named(sinks, None, "without the sink")
    assert not running.is_named(sinks, None, "computed without `getitem` (attention_sinks_unused.py:27)")


def test_rules_accept_what_is_equal_and_reject_what_is_not() -> None:
    y = np.random.default_rng(0).standard_normal((4, 5))
    low = y + 1e-3
    equal = rivals.rejections(rivals.Outputs(y, y, low, low))
    assert equal == dict.fromkeys(rivals.RULES, False)
    assert rivals.rejections(rivals.Outputs(y, -y, low, -y)) == dict.fromkeys(rivals.RULES, True)
    assert rivals.rejections(rivals.Outputs(y, y * np.nan, low, y * np.nan)) == dict.fromkeys(rivals.RULES, True)
    near = rivals.rejections(rivals.Outputs(y, y + 5e-4 * (1 + abs(y)), low, low))
    assert [near[f"allclose {tolerance}"] for tolerance in ("1e-3", "1e-4", "1e-5")] == [False, True, True]
    assert rivals.rejections(rivals.Outputs(y, y))[f"bfloat16 ratio {rivals.RATIO}"] is None


def test_intervals_are_wilsons() -> None:
    assert table.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert table.wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert table.share([True, False, None]) == "1 of 2 [9%, 91%]"


def test_every_bug_is_stored_as_its_record_says() -> None:
    stored = table.load()["bugs"]
    assert list(stored) == porting_bugs.names(), "run python -m tests.meta.porting_bugs NAME --store"
    for name, bug in porting_bugs.chosen().items():
        one = stored[name]
        assert {field: one.get(field) for field in running.row(bug)} == running.row(bug), name
        assert one["place"] == running.is_at(one["layer"], bug.layers), name
        assert one["named"] == (one["findings"] > 0 and running.is_named(bug, one["trap"], one["text"])), name


def test_the_page_is_what_was_measured() -> None:
    stored = table.load()
    assert table.page(stored) == table.PAGE.read_text(), "run python -m tests.meta.porting_bugs.table"
    changed = copy.deepcopy(stored)
    changed["bugs"][SAMPLE[0]]["caught"] = False
    assert table.page(changed) != table.PAGE.read_text()


def test_the_command_exits_with_1_where_a_bug_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, file = SAMPLE[1], tmp_path / "found.json"
    stored = table.load()["bugs"][name]
    found = running.Outcome(**{one.name: stored.get(one.name) for one in dataclasses.fields(running.Outcome)})
    monkeypatch.setattr(running, "run", lambda bug: found)
    assert command.main([name, "--json", str(file)]) == 0
    assert f'"{name}"' in file.read_text()
    monkeypatch.setattr(running, "run", lambda bug: dataclasses.replace(found, named=False))
    assert command.main([name]) == 1
    assert f"{name}: not named." in capsys.readouterr().out


def test_a_name_that_is_no_bug_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rope_interleavd"]) == 2
    assert "rope_interleaved is nearest" in capsys.readouterr().err
    with pytest.raises(UserError):
        porting_bugs.chosen(["nothing"])


@pytest.mark.parametrize("change", [{"kind": "other"}, {"source": "a project"}, {"named": "("}])
def test_a_record_that_is_not_valid_is_refused(change: dict[str, str]) -> None:
    with pytest.raises((ValueError, re.error), match=r"kind|source|missing|unterminated"):
        dataclasses.replace(porting_bugs.load(SAMPLE[0]), **change)


def test_every_module_says_its_source() -> None:
    for name, bug in porting_bugs.chosen().items():
        module = Path(porting_bugs.__file__ or "").with_name(f"{name}.py").read_text()
        assert isinstance(bug, Bug)
        assert bug.source in module.split('"""')[1], name
