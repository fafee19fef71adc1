"""A check and the process that it runs in: settings do not change the verdict, and the check changes no setting."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import process_state
import pytest
import torch
from flax import linen, nnx
from networks import quick_compilation

import parity
from parity.running import flax as run_flax
from parity.running.isolation import WAITING
from parity.verdict import flips
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
OPTIONS: dict[str, Any] = {"steps": 1, "accept": ["bn-running-var"]}


class Calls:
    """Do something at one call of a model, counted from 1."""

    def __init__(self, number: int = 0, action: Callable[[], Any] = lambda: None) -> None:
        self.number, self.action, self.count = number, action, 0

    def __deepcopy__(self, _: Any) -> Calls:
        return self

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.number:
            self.action()


class Torch(torch.nn.Module):
    def __init__(self, calls: Calls | None = None) -> None:
        super().__init__()
        self.up, self.norm, self.act = torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU()
        self.drop, self.down = torch.nn.Dropout(0.3), torch.nn.Linear(4, 2)
        self.calls = calls or Calls()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls()
        return self.down(self.drop(self.act(self.norm(self.up(x)))))


class Flax(nnx.Module):
    def __init__(self, calls: Calls | None = None, epsilon: float = 1e-5) -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, epsilon=epsilon, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.calls = nnx.static(calls or Calls())

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls()
        return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))


class Linen(linen.Module):
    head: linen.Module

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.BatchNorm(not train, momentum=0.9)(linen.Dense(4)(x))
        return self.head(linen.relu(x))


def reference(calls: Calls | None = None, seed: int = 0) -> Torch:
    """Return a PyTorch model whose weights are drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Torch(calls)


def pair(**options: Any) -> tuple[Torch, Flax]:
    net = reference()
    return net, parity.move(net, Flax(**options), X)


@contextmanager
def changed(write: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    """Write a setting of the process, and write what it was at the end."""
    write(value)
    try:
        yield
    finally:
        write(before)


def default_type(dtype: torch.dtype) -> AbstractContextManager[None]:
    return changed(torch.set_default_dtype, dtype, torch.float32)


@contextmanager
def errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default float64": lambda: default_type(torch.float64),
    "default bfloat16": lambda: default_type(torch.bfloat16),
    "default device": lambda: changed(torch.set_default_device, "meta", None),
    "deterministic": lambda: changed(torch.set_deterministic_debug_mode, "error", "default"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "leaks": jax.checking_leaks,
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "products": lambda: jax.default_matmul_precision("BF16_BF16_F32"),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "numpy": lambda: np.errstate(all="raise"),
    "warnings": errors,
}


def verdict(net: Torch, flax: Flax, **options: Any) -> Any:
    """Return all that a check finds. Its port has a wrong epsilon, so that it looks for the mistake, too."""
    (model,) = parity.check(net, flax, X, **OPTIONS, **options).models
    return model.rows, model.findings, model.pairing, model.undecided, model.precision


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded() -> None:
    """What a first check imports adds loggers to the settings that are compared: PyTorch's optimizers, its compiler."""
    with quick_compilation():
        parity.assert_parity(*pair(), X, **OPTIONS)


@pytest.fixture(scope="module")
def wrong() -> tuple[Torch, Flax]:
    with quick_compilation():
        return pair(epsilon=1e-3)


@pytest.fixture(scope="module")
def outside(wrong: tuple[Torch, Flax]) -> Any:
    with quick_compilation():
        rows, findings, *others = verdict(*wrong)
    assert {row.ok for row in rows} == {True, False}
    assert findings
    return rows, findings, *others


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_caller_does_not_change_the_verdict(
    name: str, wrong: tuple[Torch, Flax], outside: Any
) -> None:
    with SETTINGS[name]():
        found = verdict(*wrong)
    assert found == outside


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_caller_does_not_change_what_is_moved(name: str, wrong: tuple[Torch, Flax]) -> None:
    net, flax = wrong
    fresh = Flax()
    with SETTINGS[name]():
        moved = parity.move(net, fresh, X)
    assert moved.up.kernel.get_value().tobytes() == flax.up.kernel.get_value().tobytes()
    assert moved.down.kernel.get_value().tobytes() == flax.down.kernel.get_value().tobytes()


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["autocast", "strict types"])
def test_a_setting_of_the_caller_does_not_change_the_error_in_float32(name: str, wrong: tuple[Torch, Flax]) -> None:
    expected = verdict(*wrong, dtypes=["float32"])
    with SETTINGS[name]():
        assert verdict(*wrong, dtypes=["float32"]) == expected


@pytest.mark.parametrize("around", [nullcontext, torch.inference_mode], ids=["outside", "inside"])
def test_a_model_that_was_built_in_inference_mode_is_checked(around: Callable[[], Any], outside: Any) -> None:
    with torch.inference_mode():
        net = reference()
    with around():
        flax = parity.move(net, Flax(epsilon=1e-3), X)
        assert verdict(net, flax) == outside


class Warns(Torch):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("an old layer", UserWarning, stacklevel=1)
        return super().forward(x)


def test_a_warning_that_is_an_error_is_shown_and_the_verdict_is_given() -> None:
    net, flax = pair()
    net.__class__ = Warns
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        parity.assert_parity(net, flax, X, **OPTIONS)
    assert {str(warning.message) for warning in shown} == {"an old layer"}


# All that a caller may have set and that belongs to the process. The check must find it again.
ALTERED = ("no_grad", "default bfloat16", "deterministic", "disable_jit", "numpy", "warnings", "strict types")


@contextmanager
def altered() -> Iterator[None]:
    with ExitStack() as stack:
        for name in ALTERED:
            stack.enter_context(SETTINGS[name]())
        torch.set_deterministic_debug_mode("warn")
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise ValueError("a model's own error")


# What happens, how it ends, and how the models are made: at which call of which model something is raised.
ENDS: dict[str, tuple[Any, dict[str, Any], Callable[..., Any]]] = {
    "pass": (None, {}, parity.assert_parity),
    "float32": (None, {}, partial(parity.assert_parity, dtypes=["float32"], tf32=False)),
    "mismatch": (AssertionError, {"epsilon": 1e-3}, parity.assert_parity),
    "torch raises": (UserError, {"torch": (1, fail)}, parity.check),
    "flax raises": (UserError, {"flax": (1, fail)}, parity.check),
    "torch raises late": (UserError, {"torch": (6, fail)}, parity.check),
    "torch interrupted": (KeyboardInterrupt, {"torch": (8, interrupt)}, parity.check),
    "flax interrupted": (KeyboardInterrupt, {"flax": (3, interrupt)}, parity.check),
    "question": (UserError, {}, partial(parity.check, layouts={"nothing": "same"})),
    "move": (None, {}, parity.move),
    "move raises": (UserError, {"flax": (1, fail)}, parity.move),
    "move interrupted": (KeyboardInterrupt, {"torch": (1, interrupt)}, parity.move),
}


def models(how: dict[str, Any]) -> tuple[Torch, Flax]:
    net, flax = pair(epsilon=how.get("epsilon", 1e-5))
    net.calls, flax.calls = (Calls(*how.get(side, ())) for side in ("torch", "flax"))
    return net, flax


@pytest.mark.sample(4)
@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("around", [nullcontext, altered], ids=["plain", "altered"])
@pytest.mark.parametrize("name", ENDS)
def test_every_setting_is_put_back(name: str, around: Callable[[], Any]) -> None:
    error, how, run = ENDS[name]
    net, flax = models(how)
    options = OPTIONS if "move" not in name else {}
    with around(), nullcontext() if error is None else pytest.raises(error):
        before = process_state.settings()
        try:
            run(net, flax, X, **options)
        finally:
            after = process_state.settings()
            assert {k: (v, after[k]) for k, v in before.items() if after[k] != v} == {}


def draws() -> None:
    """Use up numbers of every global generator."""
    torch.rand(3)
    random.random()
    np.random.rand()  # noqa: NPY002


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("side", ["torch", "flax"])
def test_random_numbers_that_a_model_draws_are_given_back(side: str) -> None:
    net, flax = pair()
    (net if side == "torch" else flax).calls = Calls(2, draws)
    before = process_state.settings()
    parity.assert_parity(net, flax, X, **OPTIONS)
    assert process_state.settings() == before


@pytest.mark.parametrize("name", ["pass", "mismatch", "torch interrupted", "flax interrupted"])
def test_the_models_of_the_caller_are_left_as_they_were(name: str) -> None:
    error, how, _ = ENDS[name]
    net, flax = models(how)
    net.down.weight.requires_grad_(name == "pass")  # a layer that the port trains would be a mismatch
    net.norm.eval()
    net.up.bias.grad = torch.ones(4)
    net.down.register_forward_hook(lambda *_: None)
    before = process_state.of_torch(net), process_state.of_flax(flax)
    with nullcontext() if error is None else pytest.raises(error):
        parity.assert_parity(net, flax, X, **OPTIONS)
    assert (process_state.of_torch(net), process_state.of_flax(flax)) == before


def test_a_linen_model_is_left_as_it_was() -> None:
    net, module = reference(), Linen(linen.Dense(2))
    given = module, module.init(jax.random.key(0), X)
    before = process_state.of_torch(net), process_state.of_flax(given)
    moved = parity.move(net, given, X)
    between = process_state.of_flax(moved)
    parity.assert_parity(net, moved, X, **OPTIONS)
    assert process_state.of_flax(moved) == between
    assert (process_state.of_torch(net), process_state.of_flax(given)) == before


def _nested(call: Callable[..., Any]) -> Calls:
    net, flax = pair()
    return Calls(1, lambda: call(net, flax, X))


@pytest.mark.sample(2)
@pytest.mark.parametrize("inner", [parity.check, parity.move, parity.assert_parity])
@pytest.mark.parametrize("side", ["torch", "flax", "progress", "loss"])
def test_a_check_inside_a_check_is_refused(side: str, inner: Callable[..., Any]) -> None:
    net, flax = pair()
    nested = _nested(inner)
    options: dict[str, Any] = dict(OPTIONS)
    if side == "progress":
        options["progress"] = lambda _: nested()
    elif side == "loss":
        options["loss"] = (lambda y: (nested(), y.sum())[1], lambda y: y.sum())
    else:
        (net if side == "torch" else flax).calls = nested
    with pytest.raises(UserError, match="a check inside a check"):
        parity.check(net, flax, X, **options)
    parity.assert_parity(*pair(), X, **OPTIONS)


class Second(threading.Thread):
    """A check in a thread of its own."""

    def __init__(self, net: Torch, flax: Flax) -> None:
        super().__init__(daemon=True)
        self.net, self.flax = net, flax
        self.inside, self.result = threading.Event(), None

    def told(self, text: str) -> None:
        if text == WAITING:
            self.inside.set()

    def run(self) -> None:
        try:
            self.result = parity.check(self.net, self.flax, X, progress=self.told, **OPTIONS)
        except BaseException as error:
            self.result = error
        finally:
            self.inside.set()


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [1, 3])
def test_a_check_in_another_thread_waits(number: int) -> None:
    """Without a lock the first check, at its end, takes the second one's ears off: both listen at one class."""
    net, flax = pair()
    ended = threading.Event()
    second = Second(*pair())

    def enter() -> None:
        second.inside.set()
        assert ended.wait(60)

    second.flax.calls = Calls(number, enter)

    def start() -> None:
        second.start()
        assert second.inside.wait(60)

    flax.calls = Calls(number, start)
    first = parity.check(net, flax, X, **OPTIONS)
    ended.set()
    second.join()
    assert first, str(first)
    assert second.result, str(second.result)


def _in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_relu_in_another_thread_is_not_counted() -> None:
    with flips.in_jax() as found:
        _in_a_thread(lambda: nnx.relu(jnp.ones(3)))
        jax.jit(lambda x: _in_a_thread(lambda: nnx.relu(jnp.ones(3))) + x)(1.0)
        assert (found.on, found.lost) == ([], False)
        nnx.relu(jnp.ones(3))
        assert len(found.on) == 1


def test_attention_in_another_thread_is_computed_by_jax() -> None:
    def attend() -> bytes:
        with jax.enable_x64(True):
            q = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, 4)))
            return np.asarray(jax.nn.dot_product_attention(q, q, q)).tobytes()

    before = attend()
    with run_flax.float64_attention():
        assert attend() != before
        assert _in_a_thread(attend) == before
