"""Suggestions and patterns in bounded time, whatever names a file has: counted, not timed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.cli import main
from ports.weights import Ignore, WeightsError, near, rulesfile, save
from ports.weights.hub import _matches, match
from ports.weights.near import Near, closest
from ports.weights.recognise import recognise
from ports.weights.rulesfile import load


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many characters difflib compares with how many others: what its time grows with."""
    costs: list[int] = []
    real = difflib.get_close_matches

    def counted(word: Any, possibilities: Any, *args: Any, **options: Any) -> list[Any]:
        costs.append(sum(len(word) * len(other) for other in possibilities))
        return real(word, possibilities, *args, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return costs


def foreign(count: int, length: int = 0) -> dict[str, tuple[int, ...]]:
    return {f"blocks.{i // 7}.foo{i % 7}.{'x' * length}weight": (1, 2, 3)[: 1 + i % 3] for i in range(count)}


@pytest.mark.parametrize(("count", "length"), [(1000, 0), (30_000, 0), (500, 5000)])
def test_near_misses_cost_the_same_for_any_file(count: int, length: int, compared: list[int]) -> None:
    """30,000 names took more than a minute: each was compared with each."""
    with pytest.raises(WeightsError, match="nearest is resnet50"):
        recognise(foreign(count, length), "resnet50")
    most = 4 * near.SUGGESTIONS * near.CANDIDATES * near.LONGEST**2
    assert 0 < sum(compared) <= most
    assert len(compared) <= 4 * near.SUGGESTIONS


def test_what_does_not_fit_a_model_is_bounded_too(compared: list[int]) -> None:
    from ports.weights.hub import Target

    weights = {name: np.zeros(shape, np.float32) for name, shape in foreign(20_000).items()}
    targets = {f"model.{name}": Target(a.shape, a.dtype) for name, a in weights.items()}
    with pytest.raises(WeightsError) as raised:
        match(weights, targets)
    assert len(raised.value.problems) == 40_000
    assert len(compared) <= 4 * near.SUGGESTIONS


def test_the_right_one_is_found_among_many() -> None:
    names = {f"encoder.layers.{i}.self_attn.{n}_proj.weight": (64, 64) for i in range(3000) for n in "qkvo"}
    hint = Near(names).hint("encoder.layer.1234.self_attn.k_proj.weigth", (64, 64))
    assert hint == "; nearest: encoder.layers.1234.self_attn.k_proj.weight (64, 64)"
    assert Near({"a.weight": (2,), "b.weight": (3,)}).hint("a.weight", (3,)) == "; nearest: b.weight (3,)"
    assert Near({"conv1.weight": (2,)}).hint("conv1.weigth", (5,)) == "; nearest: conv1.weight (2,)"
    assert Near({}).hint("a", ()) == ""
    assert closest("abc", ["xyz"], 0.6) is None


def test_one_line_for_a_foreign_file(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "w.safetensors"
    save(path, {name: np.zeros(shape, np.float32) for name, shape in foreign(1000, 300).items()})
    assert main(["convert", str(path), str(tmp_path / "out"), "--model", "resnet50"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert len(line) < 3000


def rules(path: Path, source: str, target: str, kind: str = "linear") -> Path:
    path.write_text(f'[[layer]]\nsource = "{source}"\ntarget = "{target}"\ntype = "{kind}"\n')
    return path


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}{}{}{}{}{}{}{}!", "side by side"),
        ("a.{}{}", "side by side"),
        ("{}a{}a{}a{}", "2 holes at most"),
        ("{5}", "without a gap"),
        ("{0}.{2}", "without a gap"),
        ("{}.{0}", "without a gap"),
        ("{99999999999999999999}", "without a gap"),
        ("{a}", "expected as many"),
    ],
)
def test_patterns_that_could_match_for_ever(source: str, said: str, tmp_path: Path, capsys: Any) -> None:
    """`{}{}{}{}{}{}{}{}!` hung, `{5}` ended in a traceback."""
    path = rules(tmp_path / "r.toml", source, source)
    with pytest.raises(WeightsError, match=said):
        load(path)
    save(tmp_path / "w.npz", {"a" * 50: np.ones(2)})
    assert main(["convert", str(tmp_path / "w.npz"), str(tmp_path / "o.npz"), "--rules", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "target", "name", "expected"),
    [
        ("layers.{}.up", "blocks.{}.Dense_0", "layers.3.up.weight", "blocks.3.Dense_0.kernel"),
        ("layer{}_{}", "l.{}.{}", "layer1_q.weight", "l.1.q.kernel"),
        ("{0}.{1}", "{1}.{0}", "a.b.weight", "b.a.kernel"),
        ("{0}.{0}", "{0}", "a.a.weight", "a.kernel"),
    ],
)
def test_patterns_that_are_right(source: str, target: str, name: str, expected: str, tmp_path: Path) -> None:
    found = load(rules(tmp_path / "r.toml", source, target)).found({name: (2, 3)})
    assert [entry.names for entry in found.others] == [(expected,)]


def test_a_name_that_is_too_long_for_a_pattern_is_left_over(tmp_path: Path) -> None:
    held = load(rules(tmp_path / "r.toml", "{}", "{}"))
    with pytest.raises(WeightsError, match="no rule takes it"):
        held.found({"a.weight": (2, 3), "b" * (rulesfile.LONGEST + 1) + ".weight": (2, 3)})


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a" + ".a" * 3000 + " = 1", "a = \x00", "[[layer]]\nsource = 3"])
def test_rules_that_are_no_rules(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "r.toml").write_text(text)
    save(tmp_path / "w.npz", {"a": np.ones(2)})
    arguments = ["convert", str(tmp_path / "w.npz"), str(tmp_path / "o.npz"), "--rules", str(tmp_path / "r.toml")]
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_stars_do_not_multiply() -> None:
    """Each `*` of an `Ignore` takes the shortest part that fits and never goes back: this would run for years."""
    pattern = "*a" * 40 + "b"
    assert not _matches("a" * 4000, pattern)
    assert Ignore(pattern, why="a test").pattern == pattern
