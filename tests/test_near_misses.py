"""Suggestions and patterns in bounded time, whatever names a file has: counted, not timed."""

from __future__ import annotations

import difflib
import pickle
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.commands.cli import main
from ports.weights import Ignore, WeightsError, save
from ports.weights.form import near
from ports.weights.form.near import Near, closest
from ports.weights.form.torch_form import _matches, match
from ports.weights.known import recognise
from ports.weights.known.names import stripped
from ports.weights.rules import draft, patterns, rulesfile
from ports.weights.rules.rulesfile import load


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


@pytest.mark.sample(2)
@pytest.mark.parametrize(("count", "length"), [(1000, 0), (30_000, 0), (500, 5000)])
def test_near_misses_cost_the_same_for_any_file(count: int, length: int, compared: list[int]) -> None:
    """30,000 names took more than a minute: each was compared with each."""
    with pytest.raises(WeightsError, match="nearest is resnet50"):
        recognise.recognise(foreign(count, length), "resnet50")
    most = 4 * near.SUGGESTIONS * near.CANDIDATES * near.LONGEST**2
    assert 0 < sum(compared) <= most
    assert len(compared) <= 4 * near.SUGGESTIONS


def test_what_does_not_fit_a_model_is_bounded_too(compared: list[int]) -> None:
    from ports.weights.form.torch_form import Target

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
        ("{5}", "without a gap"),
        ("{0}.{2}", "without a gap"),
        ("{}.{0}", "without a gap"),
        ("{99999999999999999999}", "without a gap"),
        ("{a}", "only as"),
        ("{", "only as"),
        ("{\u0663}", "only as"),
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
        ("{}_{}_{}", "{}.{}.{}", "a_b_c.weight", "a.b.c.kernel"),
        ("{}a{}a{}a{}", "{}.{}.{}.{}", "xaxaxax.weight", "x.x.x.x.kernel"),
        ("{0}_{1}.{0}", "{1}.{0}", "a_b_c.a.weight", "b_c.a.kernel"),
        ("{}", "l.{}", "b" * 6000 + ".weight", "l." + "b" * 6000 + ".kernel"),
    ],
)
def test_patterns_that_are_right(source: str, target: str, name: str, expected: str, tmp_path: Path) -> None:
    found = load(rules(tmp_path / "r.toml", source, target)).found({name: (2, 3)})
    assert [entry.names for entry in found.others] == [(expected,)]


def test_patterns_mean_what_a_regular_expression_means() -> None:
    """Short names, where going back over a name costs nothing: the same holes take the same characters."""
    rng, matched = np.random.default_rng(0), 0
    for _ in range(3000):
        texts = rng.choice(["", "a", "_", "b", "aa", "_a"], int(rng.integers(2, 5)))
        text = "{}".join(texts)
        if patterns.misplaced(text):
            continue
        expression = re.compile("([^.]+)".join(map(re.escape, texts)))
        for name in ("".join(rng.choice(["a", "b", "_"], int(rng.integers(1, 9)))) for _ in range(5)):
            expected = expression.fullmatch(name)
            assert patterns.parse(text).match([name]) == (expected and expected.groups()), (text, name)
            matched += expected is not None
    assert matched > 200


def test_holes_over_several_parts_do_not_multiply(tmp_path: Path) -> None:
    """Each part of this name fits in 59 ways, and a regular expression tried the ways of all parts together."""
    pattern = ".".join(["{}_{}"] * 8)
    held = load(rules(tmp_path / "r.toml", f"{pattern}!", f"{pattern}!"))
    with pytest.raises(WeightsError, match="no rule takes it"):
        held.found({".".join(["_".join("a" * 60)] * 8) + ".weight": (2, 3)})


def steps(function: Callable[[], Any]) -> int:
    """How many lines of Python a call runs: what its time grows with, on any machine."""
    count = 0

    def tracer(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def wrapped(size: int) -> Any:
    return lambda: stripped(["module." * size + "w", "module." * size + "v"])


def compiled(size: int) -> Any:
    return lambda: stripped(["a._orig_mod." * size + "w"])


def attentions(size: int) -> Any:
    layers = {f"l{i:04}.in_proj_weight": np.zeros((6, 2)) for i in range(size)}
    layers |= {f"l{i:04}.out_proj.weight": np.zeros((2, 2)) for i in range(size)}
    others = {f"m{i:04}.weight": np.zeros((2, i + 1)) for i in range(size)}
    return lambda: draft.draft({**layers, **others}, {**layers, **others})


def rows(size: int) -> Any:
    held = rulesfile.Rules(
        "r", "torch", "nnx", tuple(rulesfile.FileRow(f"l{i}", f"m{i}", "linear", {}) for i in range(size))
    )
    return lambda: held.found({f"l{i}.weight": (2, 3) for i in range(size)})


@pytest.mark.parametrize("work", [wrapped, compiled, attentions, rows])
def test_work_grows_with_the_size_alone(work: Any) -> None:
    """Twice the names, or names twice as deep, take twice the time and not four times."""
    steps(work(10))  # what is read once a process
    assert steps(work(160)) < 2.6 * steps(work(80))


def test_memory_for_deep_names() -> None:
    """A name of 5,000 characters has 2,500 modules; each was kept with all that are around it."""
    tracemalloc.start()
    try:
        stripped(["a." * 2500 + "w"])
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_normal_names_of_wrapped_models() -> None:
    names = ["module.a.module.w", "module.a.module.b", "module.c._orig_mod.w", "module.module"]
    assert list(stripped(names)) == ["a.w", "a.b", "c.w", "module"]
    assert list(stripped(["a._orig_mod.w", "a.w"])) == ["a._orig_mod.w", "a.w"]
    assert list(stripped(["module.a", "b"])) == ["module.a", "b"]
    assert list(stripped(["module._orig_mod.module.w"])) == ["w"]


def test_ignoring_compares_no_name_with_all_others() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    weights: dict[Any, Any] = {Name(f"x{i}.weight"): np.zeros(2) for i in range(300)}
    assert match(weights, {}, [Ignore("*", why="a test")]) == {}
    assert compared < 3000


def test_what_is_printed_of_many_problems_is_bounded() -> None:
    error = WeightsError([f"{'x' * 5000} {i}: wrong" for i in range(5000)])
    assert len(error.problems) == 5000
    assert len(str(error)) < 200_000
    assert "5000 problems" in str(error)
    assert "and 4,900 more" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_notes_of_what_rules_leave_out_are_bounded() -> None:
    held = rulesfile.Rules("r", "torch", "nnx", (rulesfile.FileRow("a", "b", "linear", {}),), (("x*", "unused"),))
    found = held.found({"a.weight": (2, 3), **{f"x{i}": (2,) for i in range(5000)}})
    assert found.notes == ["x0, x1, x2 and 4997 more: left out (unused)"]


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
