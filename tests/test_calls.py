"""How models are called: arguments of one side alone, methods, modes, model objects of a library, padded sequences."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

import parity
from benchmarks.subjects.own_pair import load_pair
from parity import options
from parity.commands.cli import main
from parity.numerics import masking
from parity.numerics.calls import MODES
from parity.numerics.layouts import rebuilt
from parity.plugin import Check, Files
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 6, 5))
SCALES = RNG.uniform(0.5, 1.5, (3, 6)).astype(np.float32)
PORTS = pytest.mark.parametrize("port", ["nnx", "linen"])


class TorchTwo(torch.nn.Module):
    """Two layers; what is between them is told by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(5, 7), torch.nn.Linear(7, 4)

    def forward(self, x: Any, scales: Any = None, images: Any = None) -> Any:
        hidden = torch.tanh(self.up(x))
        hidden = hidden if scales is None else hidden * scales[..., None]
        return self.down(hidden if images is None else hidden + images[:, 1, 0, 2, None, None])

    def encode(self, x: Any) -> Any:
        return torch.tanh(self.up(x)).square()

    def in_mode(self, x: Any) -> Any:
        return self.down(torch.tanh(self.up(x)) * (3.0 if self.training else 1.0))


def two(model: Any, x: Any, factors: Any, pictures: Any) -> Any:
    hidden = jnp.tanh(model.up(x))
    hidden = hidden if factors is None else hidden * factors[..., None]
    return model.down(hidden if pictures is None else hidden + pictures[:, 0, 2, 1, None, None])


class LinenTwo(nn.Module):
    def setup(self) -> None:
        self.up, self.down = nn.Dense(7), nn.Dense(4)

    def __call__(self, x: Any, factors: Any = None, pictures: Any = None) -> Any:
        return two(self, x, factors, pictures)

    def encode(self, x: Any, power: int = 2) -> Any:
        return jnp.tanh(self.up(x)) ** power

    def scaled(self, x: Any, training_now: bool) -> Any:
        return self.down(jnp.tanh(self.up(x)) * (3.0 if training_now else 1.0))


class NnxTwo(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 4, rngs=rngs)

    def __call__(self, x: Any, factors: Any = None, pictures: Any = None) -> Any:
        return two(self, x, factors, pictures)

    def encode(self, x: Any, power: int = 2) -> Any:
        return jnp.tanh(self.up(x)) ** power

    def scaled(self, x: Any, training_now: bool) -> Any:
        return self.down(jnp.tanh(self.up(x)) * (3.0 if training_now else 1.0))


def pair(port: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = TorchTwo()
    flax = NnxTwo(nnx.Rngs(0)) if port == "nnx" else linen(LinenTwo(), X)
    return model, parity.move(model, flax, X)


def linen(module: nn.Module, *inputs: Any) -> tuple[nn.Module, Any]:
    return module, module.init(jax.random.key(0), *map(jnp.array, inputs))


def wrong(report: parity.Report) -> set[str]:
    return {row.quantity for row in report.models[0].rows if not row.ok}


@pytest.mark.sample(1)
@PORTS
def test_each_side_takes_keywords_of_its_own(port: str) -> None:
    model, flax = pair(port)
    alone: dict[str, Any] = {
        "torch_keywords": {"scales": torch.as_tensor(SCALES)},
        "flax_keywords": {"factors": jnp.array(SCALES), "pictures": None},
    }
    moved = parity.move(model, flax, X, **alone)
    report = parity.check(model, moved, X, steps=1, dtypes=("float32",), **alone)
    assert report, str(report)
    other = SCALES.copy()
    other[1, 2] += 1e-6
    alone["flax_keywords"] = {"factors": other}
    report = parity.check(model, moved, X, steps=1, **alone)
    assert "output.eval" in wrong(report)


@pytest.mark.sample(1)
@PORTS
def test_arrays_for_flax_alone_have_its_layout(port: str) -> None:
    model, flax = pair(port)
    images = RNG.standard_normal((3, 3, 2, 4))
    channels_last = images.transpose(0, 2, 3, 1)
    for theirs, ok in ((channels_last, True), (channels_last[:, :, ::-1], False)):
        told: dict[str, Any] = {"torch_keywords": {"images": images}, "flax_keywords": {"pictures": theirs}}
        assert parity.check(model, flax, X, steps=0, **told).ok is ok


@PORTS
def test_no_inputs_but_keywords(port: str) -> None:
    model, flax = pair(port)
    report = parity.check(model, flax, steps=0, torch_keywords={"x": X}, flax_keywords={"x": X})
    assert report, str(report)


@pytest.mark.sample(3)
@PORTS
@pytest.mark.parametrize("torch_call", ["encode", lambda model, x: torch.tanh(model.up(x)) ** 2])
@pytest.mark.parametrize("flax_call", ["encode", lambda model, x: model.encode(x)])
def test_a_method_or_a_function_is_called(port: str, torch_call: Any, flax_call: Any) -> None:
    model, flax = pair(port)
    report = parity.check(model, flax, X, steps=1, torch_call=torch_call, flax_call=flax_call)
    assert report, str(report)
    assert "layer.eval" in {row.quantity for row in report.models[0].rows}


@PORTS
def test_a_mistake_in_a_method_is_found_behind_its_layer(port: str) -> None:
    model, flax = pair(port)
    report = parity.check(model, flax, X, steps=1, torch_call="encode", flax_call=lambda m, x: m.encode(x, power=4))
    assert "output.eval" in wrong(report)
    (finding,) = report.models[0].findings
    assert finding.layer == "(the network)"
    assert "up" in finding.text


def test_layers_in_a_function_are_recorded() -> None:
    """The mistake is in a layer, and the layer is named."""
    model, flax = pair("nnx")

    class Shifted(nnx.Linear):
        def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
            return super().__call__(inputs) + 0.1

    flax.up.__class__ = Shifted
    report = parity.check(model, flax, X, steps=1, torch_call="encode", flax_call=lambda m, x: m.encode(x))
    assert [finding.layer for finding in report.models[0].findings] == ["up"]


@PORTS
def test_move_calls_what_the_check_calls(port: str) -> None:
    """By their own call these models do not run on this input at all."""

    class Broken(TorchTwo):
        def forward(self, x: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise ValueError("not this one")

    model = Broken()
    flax = NnxTwo(nnx.Rngs(1)) if port == "nnx" else linen(LinenTwo(), X)
    moved = parity.move(model, flax, X, torch_call="encode", flax_call="encode")
    assert parity.check(model, moved, X, steps=0, torch_call="encode", flax_call="encode")
    with pytest.raises(UserError, match="PyTorch model raises ValueError: not this one"):
        parity.move(model, flax, X)


def saying(name: str, in_train: object, default: Any = inspect.Parameter.empty) -> Callable[..., Any]:
    """Return a function that must be told its mode under this name."""

    def call(model: Any, x: Any, **said: Any) -> Any:
        return model.scaled(x, said.get(name, default) == in_train)

    kinds = inspect.Parameter
    named = kinds(name, kinds.KEYWORD_ONLY, default=default)
    vars(call)["__signature__"] = inspect.Signature(
        [kinds("model", kinds.POSITIONAL_OR_KEYWORD), kinds("x", kinds.POSITIONAL_OR_KEYWORD), named]
    )
    return call


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", MODES)
def test_modes_are_known_by_their_names(name: str) -> None:
    model, flax = pair("nnx")
    flax_call = saying(name, MODES[name])
    report = parity.check(model, flax, X, steps=0, torch_call="in_mode", flax_call=flax_call)
    assert report, str(report)


@pytest.mark.sample(1)
@PORTS
def test_a_mode_of_any_name_is_told(port: str) -> None:
    model, flax = pair(port)
    told: dict[str, Any] = {"steps": 0, "torch_call": "in_mode", "flax_call": "scaled"}
    with pytest.raises(UserError, match=r"needs 'training_now', got no value; .*modes=\{'training_now'"):
        parity.check(model, flax, X, **told)
    report = parity.check(model, flax, X, modes={"training_now": (False, True)}, **told)
    assert report, str(report)
    for both, quantity in (((True, True), "output.eval"), ((False, False), "output.train")):
        assert quantity in wrong(parity.check(model, flax, X, modes={"training_now": both}, **told))


def test_a_mode_need_not_be_a_boolean() -> None:
    model, flax = pair("nnx")
    told: dict[str, Any] = {"steps": 0, "torch_call": "in_mode", "flax_call": saying("phase", "learning")}
    assert parity.check(model, flax, X, modes={"phase": ("using", "learning")}, **told)


def test_a_mode_goes_to_each_side_that_names_it() -> None:
    model, flax = pair("nnx")

    def torch_call(model: Any, x: Any, phase: int) -> Any:
        return model.down(torch.tanh(model.up(x)) * (1.0 + 2 * phase))

    told: dict[str, Any] = {"steps": 0, "torch_call": torch_call, "flax_call": saying("phase", 1)}
    assert parity.check(model, flax, X, modes={"phase": (0, 1)}, **told)


def test_what_is_no_switch_is_left_alone() -> None:
    """`inference` is a number here."""
    model, flax = pair("nnx")
    told: dict[str, Any] = {"steps": 0, "torch_call": "in_mode", "modes": {"phase": (0, 1)}}

    def flax_call(model: Any, x: Any, phase: int, inference: float = 2.0) -> Any:
        return model.scaled(x, bool(phase)) * inference / 2.0

    assert parity.check(model, flax, X, flax_call=flax_call, **told)


def test_a_mode_that_an_input_stands_for_is_not_passed_again() -> None:
    model, flax = pair("nnx")

    def torch_call(model: Any, x: Any, train: Any) -> Any:
        return model.encode(x) * train

    def flax_call(model: Any, x: Any, train: Any) -> Any:
        return model.encode(x) * train

    assert parity.check(model, flax, X, np.array(2.0), steps=0, torch_call=torch_call, flax_call=flax_call)


class NoCall(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 4, rngs=rngs)

    def embed(self, x: Any, bias: Any, more: Any) -> Any:
        return self.down(self.up(x) + bias) + more


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"Flax model NoCall has no method '__call__'; say what to call: flax_call='embed'"),
        ({"flax_call": "embedd"}, r"flax_call: the Flax model NoCall has no method 'embedd'; .*; embed is nearest"),
        ({"torch_call": "encod"}, r"torch_call: the PyTorch model TorchTwo has no method 'encod'; .*; encode is"),
        (
            {"flax_call": "embed"},
            r"NoCall\.embed needs 'bias' and 'more', got no value; pass flax_keywords=\{'bias': …, 'more': …\}, or",
        ),
        ({"flax_call": lambda m: m}, r"flax_call \(<lambda>\) takes 0 inputs, got 1; pass by name what one side"),
        (
            {"flax_call": "embed", "keywords": {"scales": 1, "bias": 1}},
            r"the PyTorch model's TorchTwo\.forward takes no 'bias', expected one of images, scales; what the other "
            r"side alone takes goes into flax_keywords=$",
        ),
        (
            {"torch_keywords": {"scale": 1}, "flax_call": "embed"},
            r"TorchTwo\.forward takes no 'scale', expected one of images, scales; scales is nearest",
        ),
        ({"torch_keywords": {"x": 1}, "flax_call": "embed"}, r"TorchTwo\.forward gets 'x' twice"),
        (
            {"flax_call": "embed", "modes": {"phase": (0, 1)}},
            r"modes: neither side takes 'phase'; PyTorch's call takes x, scales, images; Flax's call takes x, bias",
        ),
    ],
)
def test_a_call_that_cannot_be_made_is_one_line(given: dict[str, Any], said: str) -> None:
    for call in (parity.check, parity.move):
        with pytest.raises(UserError, match=said) as raised:
            call(TorchTwo(), NoCall(nnx.Rngs(0)), X, **given)
        assert "\n" not in str(raised.value)


def test_a_pytorch_model_without_a_forward() -> None:
    class Bare(torch.nn.Module):
        def run(self, x: Any) -> Any:
            return x

    said = "the PyTorch model Bare has no method 'forward'; say what to call: torch_call='run'"
    with pytest.raises(UserError, match=said):
        parity.check(Bare(), NnxTwo(nnx.Rngs(0)), X)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flax_keywords": [1]}, r"flax_keywords: got \[1\], expected a dict of values by the names of arguments"),
        ({"torch_keywords": {1: 2}}, r"torch_keywords: got \{1: 2\}, expected a dict"),
        ({"modes": {"a": True}}, r"modes: a: got True, expected two values: \(in eval mode, in train mode\)"),
        ({"modes": {"a": (1, 2, 3)}}, r"modes: a: got \(1, 2, 3\), expected two values"),
        ({"keywords": {"a": 1}, "flax_keywords": {"a": 2}}, "got 'a' in both keywords and flax_keywords, expected"),
        ({"torch_keywords": {"a": 1}, "modes": {"a": (1, 2)}}, "got 'a' in both torch_keywords and modes"),
        ({"flax_call": 3}, r"flax_call: got 3, expected a function \(model, \*inputs, \*\*keywords\) or the name"),
    ],
)
def test_options_of_calls_are_checked_where_the_record_is_made(given: dict[str, Any], said: str) -> None:
    for record in (options.CallOptions, options.MoveOptions, options.PairOptions):
        with pytest.raises(UserError, match=said):
            record(**given)


def test_numbers_of_one_side_are_checked_too() -> None:
    model, flax = pair("nnx")
    with pytest.raises(UserError, match=r"^torch_keywords\.scales: 1 of 2 numbers are NaN or infinite"):
        parity.check(model, flax, X, torch_keywords={"scales": np.array([1.0, np.nan])})
    with pytest.raises(UserError, match=r"^flax_keywords\.factors\.0: got an array of <U1, expected numbers"):
        parity.check(model, flax, X, flax_keywords={"factors": [np.array("a"), 1]})


def test_move_refuses_what_it_does_not_know() -> None:
    model, flax = pair("nnx")
    unknown: Any = {"steps": 3}
    with pytest.raises(UserError, match=r"got the option 'steps' of parity\.check, expected one of layouts, keywords"):
        parity.move(model, flax, X, **unknown)
    misspelt: Any = {"keyword": {}}
    with pytest.raises(UserError, match=r"got the option 'keyword', expected one of .*; keywords is nearest"):
        parity.move(model, flax, X, **misspelt)


FILE = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_calls import X, pair
def right():
    return *pair("nnx"), X, {{"flax_call": "scaled", "torch_call": "in_mode", "modes": {{"training_now": (0, 1)}}}}
def wrong():
    return *pair("nnx"), X, {{"flax_call": "scaled", "torch_call": "in_mode", "modes": {{"training_now": (1, 0)}}}}
def masked():
    return *pair("nnx"), X, {{"mask": np.ones((3, 6), bool), "torch_keywords": {{"scales": None}}}}
"""


def test_a_pair_file_gives_them(tmp_path: Any, request: pytest.FixtureRequest, capsys: Any) -> None:
    file = tmp_path / "pair.py"
    file.write_text(FILE.format(tests=str(request.path.parent)))
    exits = [main(["check", f"{file}:{name}", "--steps", "0"]) for name in ("right", "wrong", "masked")]
    assert exits == [0, 1, 0], capsys.readouterr()


def test_the_benchmark_refuses_what_it_would_not_call(tmp_path: Any, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "pair.py"
    file.write_text(FILE.format(tests=str(request.path.parent)))
    with pytest.raises(UserError, match=r"got torch_call, flax_call, modes; the benchmark calls both models alike"):
        load_pair(f"{file}:right")


def test_the_plugin_passes_them_on(request: pytest.FixtureRequest) -> None:
    model, flax = pair("nnx")
    check = Check(Files({}, every=False), request.node)
    assert check(model, flax, X, steps=0, torch_call="encode", flax_call="encode")
    with pytest.raises(AssertionError, match=r"output\.eval"):
        check(model, flax, X, steps=0, torch_call="encode", flax_call=lambda m, x: m.encode(x, 4))


class TorchTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.kinds = torch.nn.Embedding(9, 4), torch.nn.Embedding(2, 4)
        self.norm, self.head = torch.nn.BatchNorm1d(4, eps=1e-5), torch.nn.Linear(4, 3)

    def forward(self, ids: Any, kinds: Any = None) -> Any:
        kinds = torch.zeros_like(ids) if kinds is None else kinds
        x = self.tokens(ids) + self.kinds(kinds)
        return {"logits": self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)), "cache": None}


class LinenTokens(nn.Module):
    @nn.compact
    def __call__(self, ids: Any, kinds: Any, deterministic: bool = True) -> Any:
        x = nn.Embed(9, 4, name="tokens")(ids) + nn.Embed(2, 4, name="kinds")(kinds)
        x = nn.BatchNorm(use_running_average=deterministic, momentum=0.9, epsilon=1e-5, name="norm")(x)
        return {"logits": nn.Dense(3, name="head")(x)}


class Held:
    """A model as a library hands it out: a module, its parameters, and a call that fills in what is left out."""

    kind = 0

    def __init__(self, module: nn.Module, params: Any) -> None:
        self._module, self.params = module, params

    @property
    def module(self) -> nn.Module:
        return self._module

    def __call__(self, ids: Any, kinds: Any = None, params: Any = None, train: bool = False, key: Any = None) -> Any:
        kinds = jnp.full_like(ids, self.kind) if kinds is None else kinds
        return self.module.apply(
            params or self.params,
            jnp.array(ids, "i4"),
            jnp.array(kinds, "i4"),
            deterministic=not train,
            rngs={} if key is None else {"dropout": key},
            mutable=["batch_stats"] if train else False,
        )

    def embed(self, ids: Any) -> Any:
        return self.module.apply(self.params, ids, method=lambda module, ids: module(ids, jnp.zeros_like(ids)))


class WrongDefault(Held):
    kind = 1


IDS = RNG.integers(0, 9, (4, 6))


def held(cls: type[Held]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = TorchTokens()
    module = LinenTokens()
    variables = module.init(jax.random.key(0), IDS, IDS * 0)
    return model, parity.move(model, cls(module, variables), IDS)


@pytest.mark.nightly
def test_a_model_object_is_called_as_its_library_calls_it() -> None:
    told: dict[str, Any] = {"steps": 1, "accept": ["bn-running-var"]}
    model, flax = held(Held)
    assert type(flax) is Held
    report = parity.check(model, flax, IDS, dtypes=("float32",), **told)
    assert report, str(report)
    assert "statistics" in {row.quantity for row in report.models[0].rows}
    model, flax = held(WrongDefault)
    report = parity.check(model, flax, IDS, **told)
    assert "output.eval" in wrong(report)
    assert any("kinds gets other indices" in finding.text for finding in report.models[0].findings)
    assert parity.check(model, flax, IDS, keywords={"kinds": IDS * 0}, **told)
    assert "output.eval" in wrong(parity.check(model, flax, IDS, torch_keywords={"kinds": IDS * 0}, **told))


def test_a_method_of_a_model_object() -> None:
    model, flax = held(WrongDefault)
    told: dict[str, Any] = {"steps": 0, "flax_call": "embed", "torch_call": lambda m, ids: m.eval()(ids)}
    assert parity.check(model, flax, IDS, **told)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Another library's way: a frozen record, whose parameters have no other collection with them."""

    module: nn.Module
    params: Any

    def __call__(self, x: Any, factor: float = 1.0) -> Any:
        return self.module.apply({"params": self.params}, x * factor)


def test_a_frozen_model_object() -> None:
    model = TorchTwo()
    module, variables = linen(LinenTwo(), X)
    flax = parity.move(model, Frozen(module, variables["params"]), X)
    assert flax.params.keys() == {"up", "down"}
    assert parity.check(model, flax, X, steps=0)
    assert not parity.check(model, flax, X, steps=0, flax_keywords={"factor": 1.001})


def test_a_model_object_takes_images_as_pytorch_does() -> None:
    """Libraries have one processor of images for both frameworks: the object moves the channels itself."""

    class Images(Held):
        def __call__(self, x: Any, params: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.module.apply(params or self.params, jnp.transpose(x, (0, 2, 3, 1)))

    images, module = RNG.standard_normal((2, 3, 6, 7)), nn.Conv(4, (3, 3), padding="VALID")
    model = torch.nn.Conv2d(3, 4, 3)
    flax = parity.move(model, Images(module, module.init(jax.random.key(0), jnp.ones((2, 6, 7, 3)))), images)
    assert parity.check(model, flax, images, steps=0)


def test_moving_leaves_a_model_object_as_it_was() -> None:
    module = LinenTokens()
    flax = Held(module, module.init(jax.random.key(0), IDS, IDS * 0))
    before = copy.deepcopy(flax.params)
    moved = parity.move(TorchTokens(), flax, IDS)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, flax.params)))
    assert not np.array_equal(moved.params["params"]["head"]["kernel"], before["params"]["head"]["kernel"])
    assert moved.params.keys() == before.keys()


def test_a_model_object_without_parameters() -> None:
    class Empty(Held):
        @property
        def params(self) -> Any:
            raise ValueError("call init_weights\nand more")

        @params.setter
        def params(self, value: Any) -> None: ...

    with pytest.raises(UserError, match=r"^Empty: its parameters cannot be read: call init_weights; expected a model"):
        parity.check(TorchTokens(), Empty(LinenTokens(), {}), IDS)
    with pytest.raises(UserError, match=r"^Held\.params: got NoneType, expected the parameters of its module"):
        parity.check(TorchTokens(), Held(LinenTokens(), None), IDS)


class TorchSequence(torch.nn.Module):
    """A layer, attention over the positions that count, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(4, eps=1e-5)

    def forward(self, x: Any, padding: Any) -> Any:
        x = torch.relu(self.norm(self.up(x)))
        mean = (x * padding[..., None]).sum(1, keepdim=True) / padding.sum(1)[:, None, None]
        y = self.down(x + mean)
        return {"states": y, "score": y[..., 0], "pooled": mean[:, 0]}


class NnxSequence(nnx.Module):
    """`inner` is added behind the first layer, and `outer` to what comes of the last one."""

    def __init__(self) -> None:
        self.up, self.down = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, padding: Any, inner: Any = 0.0, outer: Any = 0.0, **planted: bool) -> Any:
        x = (nnx.silu if planted.get("silu") else nnx.relu)(self.norm(self.up(x)))
        mean = (x * padding[..., None]).sum(1, keepdims=True) / padding.sum(1)[:, None, None]
        y = self.down(x + inner + mean) + outer
        states = y.swapaxes(0, 1) if planted.get("turned") else y
        return {"states": states, "score": y[..., 0], "pooled": mean[:, 0]}


COUNTS = np.arange(6) < np.array([4, 6, 3])[:, None]
PADDED, COUNTED = np.zeros((3, 6, 1)), np.zeros((3, 6, 1))
PADDED[0, 5], COUNTED[2, 1] = 0.5, 1e-6


def sequences(planted: dict[str, Any], norm: type | None = None, **given: Any) -> parity.Report:
    torch.manual_seed(0)
    model, padding = TorchSequence(), COUNTS * 1.0
    flax = parity.move(model, NnxSequence(), X, padding)
    flax.norm.__class__ = norm or nnx.LayerNorm
    told: dict[str, Any] = {"steps": 1, "mask": COUNTS, "flax_keywords": planted, **given}
    return parity.check(model, flax, X, padding, **told)


@pytest.mark.sample(1)
@pytest.mark.parametrize("place", ["inner", "outer"])
def test_padding_is_not_compared(place: str) -> None:
    at = {place: PADDED}
    report = sequences(at)
    assert report, str(report)
    assert not report.models[0].advice
    assert "13 of 18 positions compared of output.states, output.score" in report.models[0].note
    assert "output.eval" in wrong(sequences(at, mask=None))
    assert "output.eval" in wrong(sequences(at, mask=np.ones((3, 6), bool)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("place", ["inner", "outer"])
def test_a_mistake_at_a_position_that_counts_is_found(place: str) -> None:
    """There is padding that differs, too, and by far more."""
    report = sequences({place: COUNTED + PADDED})
    assert {"output.eval", "output.train", "loss"} <= wrong(report)
    (finding,) = report.models[0].findings
    assert ("between norm and down" in finding.text) is (place == "inner")


class Shifted(nnx.LayerNorm):
    """Another epsilon, and something else at padded positions."""

    def __call__(self, x: Any, **given: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.epsilon = 1e-6
        return super().__call__(x, **given) + PADDED


@pytest.mark.nightly
def test_padding_hides_no_name_and_adds_no_finding() -> None:
    """Padding differs between the layers. The mistake is behind them, is an activation there, is in a layer there."""
    (finding,) = sequences({"inner": PADDED, "outer": COUNTED}).models[0].findings
    assert "down" in finding.text
    assert "norm" not in finding.text
    (finding,) = sequences({"inner": PADDED, "silu": True}).models[0].findings
    assert finding.trap == "relu-is-silu"
    (finding,) = sequences({}, norm=Shifted).models[0].findings
    assert (finding.layer, finding.trap) == ("norm", "norm-epsilon-1e-6")


@pytest.mark.nightly
def test_padding_counts_nothing_in_the_loss() -> None:
    """Of the check's own loss and of a loss of the caller's."""
    mine = (lambda out: out["states"].square().mean(), lambda out: jnp.square(out["states"]).mean())
    for loss in (None, mine):
        assert sequences({"outer": PADDED}, loss=loss)
        assert "loss" in wrong(sequences({"outer": COUNTED + PADDED}, loss=loss))


@pytest.mark.nightly
def test_padding_in_a_port_with_another_layout() -> None:
    report = sequences({"outer": PADDED, "turned": True})
    assert report, str(report)
    assert "output.eval" in wrong(sequences({"outer": COUNTED, "turned": True}))


def test_padding_counts_nothing_in_working_precision() -> None:
    (model,) = sequences({"outer": PADDED}, dtypes=("float32",)).models
    rows = [row for row in model.precision if row.quantity in ("output.eval", "loss", "gradient.parameter")]
    assert {row.side for row in rows} == {"pytorch", "nnx"}
    assert max(row.multiple for row in rows) < 32


def test_an_output_without_positions_is_compared_whole() -> None:
    """The mean over all positions is no sequence: it is wrong, and no padding hides it."""
    torch.manual_seed(0)
    model, padding = TorchSequence(), COUNTS * 1.0
    flax = parity.move(model, NnxSequence(), X, padding)
    told: dict[str, Any] = {"steps": 0, "mask": COUNTS, "flax_call": lambda m, x, p: m(x, p * 0 + 1.0)}
    assert "output.eval" in wrong(parity.check(model, flax, X, padding, **told))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (COUNTS[0], r"mask: got the shape \(6,\), expected \(batch, length\)"),
        (COUNTS * 0.5, "mask: got an array of float64, expected booleans: true where a position counts"),
        (COUNTS * 2, "mask: got an array of int64, expected booleans"),
        (COUNTS & False, "mask: got no position that counts, expected one at least"),
        (COUNTS.T, r"mask: got \(6, 3\), expected the first two axes of an output; PyTorch gives output.states \(3, 6"),
        ([[True], [True, False]], "mask: got list, expected an array of booleans"),
    ],
)
def test_a_mask_that_fits_nothing(mask: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sequences({}, mask=mask)


def test_zeros_and_ones_are_a_mask() -> None:
    for mask in (COUNTS * 1, torch.as_tensor(COUNTS), jnp.array(COUNTS), COUNTS.tolist()):
        assert np.array_equal(masking.positions(mask), COUNTS)


def test_the_mask_follows_the_layout_of_the_port() -> None:
    ours = np.broadcast_to(COUNTS[..., None, None], (3, 6, 2, 4))
    for axes in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3)):
        theirs = ours.transpose(axes)
        whole = np.broadcast_to(masking.in_layout(COUNTS, ours.shape, theirs.shape), theirs.shape)
        assert np.array_equal(whole, theirs)


@dataclasses.dataclass
class TorchOut:
    states: Any
    loss: Any = None
    extra: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FlaxOut:
    states: Any
    extra: Any = None


def nested(model: Any, x: Any, cls: Any, factor: float = 1.0) -> Any:
    hidden = model.up(x)
    return {"first": (cls(hidden, extra=[None, (hidden * factor,)]), None), "last": model.down(hidden)}


@pytest.mark.sample(1)
@PORTS
def test_nested_outputs_are_matched_by_name(port: str) -> None:
    model, flax = pair(port)

    def torch_call(model: Any, x: Any) -> Any:
        return nested(model, x, TorchOut)

    for factor, ok in ((1.0, True), (1.0 + 1e-6, False)):
        report = parity.check(
            model, flax, X, steps=0, torch_call=torch_call, flax_call=lambda m, x, f=factor: nested(m, x, FlaxOut, f)
        )
        assert report.ok is ok, str(report)
    assert any("output.first.0.extra" in row.tensor for row in report.models[0].rows if not row.ok)


def test_containers_stay_what_they_are() -> None:
    value = {"a": TorchOut(np.ones(2), extra=(np.ones(1), None)), "b": [3, "text"]}
    found = rebuilt(value, lambda name, array: name)
    assert found == {"a": TorchOut("output.a.states", extra=("output.a.extra.0", None)), "b": [3, "text"]}
