"""Working precision judged: faithful ports pass, planted mistakes are told at their layer, and limits are measured."""

from __future__ import annotations

import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from meta import precision
from meta.precision_mistakes import MISTAKES, tanh_in_parts
from meta.precision_networks import FlaxMlp, Ops, Setting, TorchMlp
from meta.precision_pairs import COMPUTED, FAITHFUL, Pair, fresh

import parity
from parity.commands import cli
from parity.diagnosis import precise, rounding
from parity.options import PairOptions
from parity.running import forced_values, isolation, written_out
from parity.verdict.limits import KINDS, LIMITS, spread
from parity.verdict.precision import cast
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

PAIRS = {pair.name: pair for pair in FAITHFUL}
PLANTED = {f"{mistake.name}, {mistake.dtype}": mistake for mistake in MISTAKES}


def checked(pair: Pair, dtype: str, **options: Any) -> parity.Report:
    model, port, x = pair.models()
    asked: Any = {"decide": True, **pair.options, **options}
    return parity.check(model, port, x, dtypes=dtype, **asked)


def mlp(ops: Ops, torch_act: Callable[[Any], Any] = torch.nn.functional.gelu, **setting: Any) -> Pair:
    numbers = PAIRS["mlp, gelu"].feed
    return Pair("mlp", lambda: TorchMlp(torch_act), FlaxMlp, numbers, Setting(ops=ops, **setting))


# --- the verdict


@pytest.fixture(scope="module")
def faithful() -> parity.Report:
    return checked(PAIRS["mlp, silu"], "bfloat16")


def test_a_faithful_port_passes_and_the_report_says_what_the_limit_rests_on(faithful: parity.Report) -> None:
    assert faithful.exit_code == 0, str(faithful)
    rows = [row for row in faithful.models[0].rows if row.dtype == "bfloat16"]
    assert [row.quantity for row in rows] == ["precision.layer", "precision.between"]
    assert all(0 < row.distance <= row.bound < 0.1 for row in rows)
    assert "parity in float64 and bfloat16" in str(faithful)
    assert "false alarms: " in str(faithful)
    assert json.loads(json.dumps(faithful.to_json()))["models"][0]["limits"] == list(faithful.models[0].limits)


def test_without_decide_the_same_port_gets_no_such_rows() -> None:
    report = checked(mlp(Ops(act=lambda x: jnp.tanh(x.astype(jnp.bfloat16)).astype(x.dtype)), torch.tanh), "float32")
    assert report.exit_code == 1
    plain = checked(PAIRS["mlp, silu"], "bfloat16", decide=False)
    assert {row.dtype for row in plain.models[0].rows} == {"float64"}
    assert plain.models[0].limits == ()


def test_a_less_precise_port_is_no_parity_and_its_layer_is_named() -> None:
    mistake = PLANTED["attention's softmax in bfloat16, bfloat16"]
    report = checked(mistake.pair, "bfloat16")
    assert report.exit_code == 1
    [first] = report.models[0].findings  # what comes of the softmax is not told again
    assert first.layer == "attn"
    assert "less precise than PyTorch in bfloat16: its softmax is off by" in first.text
    assert "PyTorch's code has float32 there (softmax at precision_networks.py:" in first.text
    assert "nnx is less precise than PyTorch in bfloat16" in str(report)


class TorchGate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(4, 8)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.dense(x))


class TorchOut(torch.nn.Module):
    """Gets its input from a module beside it, and hands it on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        return self.dense(x)


class FlaxParts(nnx.Module):
    def __init__(self) -> None:
        self.gate, self.out = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 2, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.out(tanh_in_parts(self.gate(x)))


def test_the_module_that_computes_is_named_and_not_the_one_that_hands_on() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(OrderedDict(gate=TorchGate(), out=TorchOut()))
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    port = parity.move(model, FlaxParts(), x, names={"gate.dense": "gate", "out.dense": "out"})
    names = {"gate.dense": "gate", "out.dense": "out"}
    report = parity.check(model, port, x, steps=0, dtypes="bfloat16", decide=True, names=names)
    assert [finding.layer for finding in report.models[0].findings] == ["gate"], str(report)
    assert "what it hands to out.dense is off by" in report.models[0].findings[0].text


class TorchTwo(torch.nn.Module):
    """Is called by a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

    def forward(self, hidden: Any) -> Any:
        return self.out(torch.tanh(self.gate(hidden)))


class Keyword(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = TorchTwo()

    def forward(self, x: Any) -> Any:
        return self.two(hidden=x)


def test_a_module_that_is_called_by_keyword_is_named() -> None:
    torch.manual_seed(0)
    x, names = (
        np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32),
        {"two.gate": "gate", "two.out": "out"},
    )
    model = Keyword()
    report = parity.check(
        model, parity.move(model, FlaxParts(), x, names=names), x, steps=0, dtypes="bfloat16", decide=True, names=names
    )
    assert [finding.layer for finding in report.models[0].findings] == ["two"], str(report)


def test_more_precision_than_pytorch_is_advice() -> None:
    report = checked(PLANTED["a layer in float32, bfloat16"].pair, "bfloat16")
    assert report.exit_code == 0
    assert [line for line in report.models[0].advice if "mid: more precise than PyTorch in bfloat16" in line]


def test_a_port_that_differs_in_float64_is_not_judged() -> None:
    report = checked(mlp(Ops(act=lambda x: jax.nn.gelu(x, approximate=True))), "bfloat16")
    assert report.exit_code == 1
    assert {row.dtype for row in report.models[0].rows} == {"float64"}


def test_a_port_that_does_not_run_in_a_type_is_not_decided() -> None:
    def act(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bfloat16:
            raise TypeError("no bfloat16 here")
        return jax.nn.silu(x)

    report = checked(mlp(Ops(act=act), torch.nn.functional.silu), "bfloat16")
    assert report.exit_code == 2
    assert "nnx in bfloat16 does not run: TypeError: no bfloat16 here" in (report.models[0].undecided or "")


# --- mistakes, and runs that have none

QUICK = (
    "up in bfloat16, float32",
    "router's softmax in bfloat16, bfloat16",
    "RMSNorm in bfloat16, bfloat16",
    "RMSNorm cast before its scale, bfloat16",
    "angles of a rotary embedding in bfloat16, bfloat16",
    "state of a running mean in bfloat16, bfloat16",
    "sum of a product in bfloat16, bfloat16",
    "LayerNorm in bfloat16, bfloat16",
    "norm in bfloat16, float32",
    "RMSNorm cast behind its scale, bfloat16",
)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", QUICK)
def test_planted_mistake_is_told_at_its_layer(name: str) -> None:
    found = precision.plant(PLANTED[name])
    assert found.caught
    assert found.layer, found.said


def test_there_are_enough_mistakes_each_under_a_name_of_its_own() -> None:
    assert len(PLANTED) == len(MISTAKES) > 40


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["mlp, gelu, tanh", "encoder, scaled queries", "decoder, parameters in float32"])
def test_faithful_runs_pass(name: str) -> None:
    pair = PAIRS[name]
    found = precision.places(pair.subject(), pair, "bfloat16", 1)
    assert len(found) > 5
    assert not [place for place in found if place.less or place.more]


def test_a_narrower_limit_refuses_faithful_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = dict.fromkeys(KINDS, 0.5)
    monkeypatch.setitem(LIMITS, "bfloat16", replace(LIMITS["bfloat16"], less=narrow))
    pair = PAIRS["mlp, silu"]
    assert any(place.less for place in precision.places(pair.subject(), pair, "bfloat16", 1))


# --- the limits are those that were measured


def test_limits_are_those_of_the_stored_measurement() -> None:
    stored = json.loads(precision.STORED.read_text())["types"]
    assert stored.keys() == LIMITS.keys()
    for dtype, limit in LIMITS.items():
        one = stored[dtype]
        assert (limit.less, limit.more) == (one["less"], one["more"])
        assert (limit.runs, limit.alarms) == (one["runs"], one["alarms"])
        assert limit.rate == pytest.approx(one["interval"][1], abs=1e-4)
        assert one["interval"] == pytest.approx(precision.interval(one["alarms"], one["runs"]))


def test_the_stored_measurement_is_large_enough() -> None:
    stored = json.loads(precision.STORED.read_text())
    assert sum(one["runs"] for one in stored["types"].values()) >= 1000
    assert stored["mistakes"]["caught"]["of"] == len(MISTAKES)
    assert stored["mistakes"]["caught"]["count"] >= 0.95 * len(MISTAKES)


def test_the_documentation_has_the_stored_figures() -> None:
    stored = json.loads(precision.STORED.read_text())
    root = Path(__file__).resolve().parents[1]
    text = (root / "docs" / "precision.md").read_text()
    assert "\n".join(precision.table(stored)) in text
    assert precision.planted(stored) in " ".join(text.split())


def test_interval_of_a_rate() -> None:
    assert precision.interval(0, 1000) == pytest.approx((0, 0.003682), abs=1e-5)
    assert precision.interval(5, 5) == pytest.approx((0.478, 1), abs=1e-3)
    assert precision.interval(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)


def test_a_limit_is_some_times_as_far_from_one_as_the_largest_ratio() -> None:
    def run(largest: float, smallest: float, dtype: str = "bfloat16") -> precision.Extremes:
        high: dict[str, float] = dict.fromkeys(KINDS, largest)
        low: dict[str, float] = dict.fromkeys(KINDS, smallest)
        return precision.Extremes("net", dtype, 0, high, low, "fc (leave)", 1, False, False)

    less, more = precision.limits_of([run(1.2, 1.0), run(1.0, 0.8)])
    assert less == dict.fromkeys(KINDS, 1.4)
    assert more == dict.fromkeys(KINDS, 0.67)
    assert precision.limits_of([run(1.0, 1.0)])[0] == dict.fromkeys(KINDS, 1.1)
    assert precision.limits_of([run(3.0, 1.0, "float32")]) == (dict.fromkeys(KINDS, 41.0), dict.fromkeys(KINDS, 0.5))


def test_few_numbers_widen_a_limit() -> None:
    assert spread(9) == 2
    few, many = (rounding.Errors("", 1.0, (1.0,), 1.0, 1 / n, 1.0, "bfloat16") for n in (4, 4096))
    assert few.count == 4
    widths = [precise.place_of(("leave", "fc"), e, "bfloat16").highest for e in (few, many)]
    assert widths[0] > 2 * widths[1]


# --- a model's own types


class Own(linen.Module):
    """Parameters are float32, and layers compute in bfloat16; but for the norm."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(8, dtype=jnp.bfloat16, name="up")(x)
        return linen.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x)


class Theirs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)

    def forward(self, x: Any) -> Any:
        return self.norm(self.up(x.to(self.up.weight.dtype)).to(self.norm.weight.dtype))


@pytest.mark.parametrize("wide", [True, False], ids=["norm in float32", "norm in bfloat16"])
def test_a_model_that_names_narrow_types_keeps_its_own(wide: bool) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    model = Theirs().to(torch.bfloat16)
    model.norm = model.norm.float() if wide else model.norm
    port = parity.move(model, (Own(), Own().init(jax.random.key(0), x)), x)
    report = parity.check(model, port, x, steps=0, dtypes="bfloat16", decide=True)
    assert report, str(report)
    assert bool(report.models[0].advice) is not wide


def test_tables_that_no_checkpoint_has_stay_in_float32() -> None:
    net = torch.nn.Linear(2, 2)
    net.register_buffer("table", torch.ones(3), persistent=False)
    net.register_buffer("kept", torch.ones(3))
    types = {name: b.dtype for name, b in cast(net, "bfloat16").named_buffers()}
    assert types == {"table": torch.float32, "kept": torch.bfloat16}


# --- PyTorch's fused functions and their parts

X = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "linear": (X, X[0, 0], X[0, 0, :, 0]),
    "conv1d": (X[0], X[0, :, :, :3], X[0, 0, 0, :3]),
    "conv2d": (X, X[:, :, :3, :3], X[0, 0, 0, :2]),
    "conv3d": (X[None, :, :2], X[:, :2, None, :3, :3].transpose(0, 1), X[0, 0, 0, :2]),
    "addmm": (X[0, 0, 0], X[0, 0], X[0, 0].T @ X[0, 1]),
    "baddbmm": (X[0], X[0], X[1].transpose(1, 2) @ X[0]),
    "batch_norm": (X, X[0, :, 0, 0], X[0, :, 0, 1].abs(), X[0, :, 1, 0], X[0, :, 1, 1]),
    "scaled_dot_product_attention": (X, X + 1, X - 1),
}


FUNCTIONS = {name: getattr(owner, name) for owner, name, _ in reversed(written_out.FUSED)}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_parts_compute_what_the_function_computes(name: str) -> None:
    function = FUNCTIONS[name]
    arguments = ARGUMENTS.get(name, (X,))
    called: list[str] = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    expected = function(*arguments)
    with Seen(), written_out.written_out():
        got = function(*arguments)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert len(called) > 1, called  # parts were called, not the function


def test_functions_are_put_back_and_other_threads_keep_them() -> None:
    fused = {name for owner, name, _ in written_out.FUSED if owner is torch.nn.functional}
    before = {name: getattr(torch.nn.functional, name) for name in fused}
    x, seen = torch.linspace(-4, 4, 999).bfloat16(), []
    with written_out.written_out():
        ours = torch.nn.functional.silu(x)
        thread = threading.Thread(target=lambda: seen.append(torch.nn.functional.silu(x)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], torch.nn.functional.silu(x))
    assert not torch.equal(ours, seen[0])
    assert all(getattr(torch.nn.functional, name) is old for name, old in before.items())


def test_softmaxes_of_this_thread_are_heard_and_put_back() -> None:
    rules = inspect.unwrap(jax.nn.softmax).__globals__
    before = {name: rules[name] for name in forced_values.RULES if name in rules}
    tap = forced_values.Forcing({}, lambda *_: None)
    x = jnp.ones((2, 3))
    with jax.disable_jit(), forced_values._jax_softmaxes(tap):
        nnx.softmax(x)
        jax.vmap(jax.nn.softmax)(x)
        thread = threading.Thread(target=lambda: jax.nn.softmax(x))
        thread.start()
        thread.join()
    assert set(tap.seen) == {("enter", "(softmax)"), ("leave", "(softmax)")}
    assert {name: rules[name] for name in before} == before


# --- options


def test_decide_needs_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="decide: got no dtypes, expected float32 or bfloat16"):
        PairOptions(decide=True)
    assert cli.main(["check", "cifar_resnet20", "--decide"]) == 2
    assert "decide: got no dtypes" in capsys.readouterr().err


def test_the_command_takes_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "narrow.py").write_text(
        "import jax.numpy as jnp, numpy as np, torch\n"
        "from flax import nnx\n"
        "import parity\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    model, x = torch.nn.Linear(4, 3), np.ones((2, 4), np.float32)\n"
        "    return model, parity.move(model, nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), x), x\n"
    )
    command = ["check", f"{tmp_path / 'narrow.py'}:make", "--steps", "0", "--dtype", "float32"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--decide"]) == 1
    assert "a part there computes in a narrower type" in capsys.readouterr().out


def test_fresh_draws_differ_by_seed_alone() -> None:
    pair = replace(PAIRS["mlp, gelu"], setting=COMPUTED)
    subject = pair.subject()
    with isolation.isolated():
        drawn: list[Any] = [dict(fresh(subject, pair.feed, seed).reference.named_parameters()) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0]["up.weight"], drawn[1]["up.weight"])
    assert not torch.equal(drawn[0]["up.weight"], drawn[2]["up.weight"])
