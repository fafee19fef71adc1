"""A sample of the faithful runs: random small networks that must pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from meta import faithful, pieces
from meta.random_modules import mistakes, programs
from meta.random_modules.choices import ACTIVATIONS
from meta.random_modules.networks import BLOCKS, INPUTS
from meta.random_modules.norms import NORMS

from benchmarks.reporting import intervals

# A run of every kind of network and of every type of weights.
SEEDS = {
    0: ("resnet", "float32"),
    56: ("unet", "float64"),
    64: ("encoder", "bfloat16"),
    73: ("lstm", "bfloat16"),
    96: ("generated", "float32"),  # Linen, patches: attention with RMSNorm
    144: ("generated", "float32"),  # NNX, tokens: experts and an LSTM
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", SEEDS)
def test_faithful_run_passes(seed: int) -> None:
    (result,) = faithful.runs(1, seed)
    assert result.ok, result
    assert (result.network, result.dtype) == SEEDS[seed]


def test_runs_are_reproducible_and_differ() -> None:
    assert faithful.network(3) == faithful.network(3)
    assert len({faithful.network(seed)[0].block for seed in range(200)}) > 50
    assert programs.program(3) == programs.program(3)
    assert len({programs.program(seed) for seed in range(200)}) == 200


def test_programs_have_every_block_norm_and_activation_in_both_ports() -> None:
    drawn = [programs.program(seed) for seed in range(600)]
    for port in ("nnx", "linen"):
        blocks = [block for program in drawn if program.port == port for block in program.blocks]
        assert {block.block for block in blocks} == {n for n, row in BLOCKS.items() if getattr(row, port) is not None}
        assert {block.norm for block in blocks} == {"", *NORMS}
        assert {block.act for block in blocks} == {*ACTIVATIONS}
        assert {block.pinned for block in blocks} == {(a, b) for a in (False, True) for b in (False, True)}
        assert {program.inputs for program in drawn if program.port == port} == {*INPUTS}


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 10_000, "95 % interval 0 to 0.037 %"),  # 1 - 0.025 ** (1 / 10000)
        (269, 269, "95 % interval 98.6 to 100 %"),  # 0.025 ** (1 / 269)
        (10, 20, "95 % interval 27 to 73 %"),  # R: binom.test(10, 20) gives 0.2719578 and 0.7280422
    ],
)
def test_intervals_are_exact(count: int, total: int, expected: str) -> None:
    assert intervals.said(count, total) == expected


def test_an_interval_of_no_tries_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        intervals.exact(0, 0)


def results(seeds: Sequence[int], wrong: int = -1) -> list[faithful.Result]:
    return [faithful.Result(s, "lstm" if s % 2 else "unet", "float32", s != wrong, 2.0 + s, "nnx loss") for s in seeds]


def test_runs_are_collected_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def runs(count: int, first: int) -> list[faithful.Result]:
        asked.append(first)
        return results(range(first, first + count), wrong=41)

    monkeypatch.setattr(faithful, "runs", runs)
    monkeypatch.setattr(pieces, "commit", lambda: "new")
    file, size = tmp_path / "runs.json", pieces.PIECE
    assert pieces.main([str(size), "--file", str(file)]) == 0
    assert pieces.main([str(2 * size), "--file", str(file)]) == 1  # one run does not pass
    assert asked == [0, size]
    assert pieces.main([str(2 * size), "--file", str(file)]) == 1
    assert asked == [0, size]
    found = json.loads(file.read_text())
    assert (found["faithful"], found["false_alarms"], found["worst_multiple"]) == (2 * size, 1, 2.0 + 2 * size - 1)
    assert found["kinds"] == {
        "lstm": {"runs": size, "false_alarms": 1},
        "unet": {"runs": size, "false_alarms": 0},
    }
    assert [alarm["seed"] for piece in found["pieces"] for alarm in piece["alarms"]] == [41]
    assert found["commits"] == {"new": 2}
    monkeypatch.setattr(pieces, "commit", lambda: "newer")
    pieces.main([str(size), "--file", str(file), "--again"])
    assert asked == [0, size, 0]
    assert json.loads(file.read_text())["commits"] == {"newer": 1, "new": 1}


def test_another_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "other.json").write_text("{}")
    assert pieces.main(["1", "--file", str(file)]) == 2
    assert "expected a file of" in capsys.readouterr().err
    assert file.read_text() == "{}"


def test_every_mistake_fits_some_block_in_both_ports() -> None:
    for mistake in mistakes.MISTAKES:
        cases = [case for case, _ in zip(mistakes.planted(mistake), range(12), strict=False)]
        assert {case.right.port for case in cases} == {"nnx", "linen"}, mistake.name
        assert all(case.right.blocks[case.block] != case.wrong.blocks[case.block] for case in cases)


def test_a_mistake_in_a_generated_module_is_found_at_its_block() -> None:
    epsilon = next(mistake for mistake in mistakes.MISTAKES if mistake.name == "the default epsilon of Flax")
    case = next(case for case in mistakes.planted(epsilon) if len(case.right.blocks) == 1)
    with faithful.compiled_once():
        result = mistakes.run(case)
    assert result.caught, result
    assert result.placed, result
