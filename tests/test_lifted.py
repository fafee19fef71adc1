"""Models that pin float32 in their own code are compared in float64: right ones pass, and a small mistake is seen."""

from __future__ import annotations

import importlib.util
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import linen, nnx

import parity
from parity.numerics.pins import TABLE, Pins
from parity.numerics.tables import recomputed
from parity.reports.html import page
from parity.running import lifted_flax
from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

LENGTH, WIDTH = 6, 12
X = np.random.default_rng(0).standard_normal((3, LENGTH, WIDTH))
# Far beyond float64's rounding, and hidden by float32's.
SMALL = 1 + 1e-9

Function = Callable[[Any], Any]


class Torch(torch.nn.Module):
    """Two linear layers and what stands between them."""

    def __init__(self, between: Function) -> None:
        super().__init__()
        self.a, self.between, self.b = torch.nn.Linear(WIDTH, 8), between, torch.nn.Linear(8, 3)
        self.table = torch.sin(torch.arange(8.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


class Flax(nnx.Module):
    """The same; the output times a factor."""

    def __init__(self, between: Function, factor: float = 1.0) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(WIDTH, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.between, self.factor = between, factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * self.b(self.between(self.a(x)))


def norm_torch(h: torch.Tensor) -> torch.Tensor:
    wide = h.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)


def norm_jax(h: jax.Array) -> jax.Array:
    wide = h.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(h.dtype)


def mask_torch(h: torch.Tensor) -> torch.Tensor:
    """Masked attention weights, with a mask in PyTorch's default type."""
    hidden = 1 - torch.tril(torch.ones(LENGTH, LENGTH))
    scores = h @ h.transpose(1, 2) + hidden.masked_fill(hidden.bool(), torch.finfo(h.dtype).min)
    return F.softmax(scores, -1, dtype=torch.float32).to(h.dtype) @ h


def mask_jax(h: jax.Array) -> jax.Array:
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), h @ h.swapaxes(1, 2), jnp.finfo(h.dtype).min)
    return jax.nn.softmax(scores.astype(jnp.float32), -1) @ h


def epsilon_torch(h: torch.Tensor) -> torch.Tensor:
    """An epsilon that is the type's own: float32's, in use."""
    return h / (h.abs() + 1e5 * torch.finfo(h.dtype).eps)


def epsilon_jax(h: jax.Array) -> jax.Array:
    return h / (jnp.abs(h) + 1e5 * jnp.finfo(h.dtype).eps)


def scanned(h: jax.Array) -> jax.Array:
    """Three times tanh(0.7 h), in float32, with a float32 sum beside it that PyTorch has too."""

    def step(carry: Any, _: Any) -> Any:
        h, total = carry
        h = jnp.tanh(h.astype(jnp.float32) * 0.7)
        return (h.astype(jnp.float32), total + h), None

    total = jnp.zeros(h.shape, jnp.float32)
    (h, total), _ = jax.lax.scan(step, (h.astype(jnp.float32), total), None, length=3)
    return h + total


def looped(h: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(h.shape)
    for _ in range(3):
        h = torch.tanh(h.float() * 0.7)
        total = total + h
    return h + total


@jax.custom_vjp
def reversed_jax(h: jax.Array) -> jax.Array:
    return h.astype(jnp.float32) * 1.5


reversed_jax.defvjp(
    lambda h: (reversed_jax(h), None), lambda _, slope: ((-slope.astype(jnp.float32) * 0.3).astype(slope.dtype),)
)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
        return h.float() * 1.5

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return -grad_outputs[0].float() * 0.3


def rotated_torch(h: torch.Tensor) -> torch.Tensor:
    """Times the cosine of position and frequency, from a float32 table of frequencies."""
    frequencies = 1.0 / (10000 ** (torch.arange(0, 16, 2, dtype=torch.int64).float() / 16))
    return h * torch.cos(torch.arange(LENGTH).float()[:, None] * frequencies)


def rotated_numpy(h: jax.Array) -> jax.Array:
    """The same from a table of cosines that numpy computes in float32."""
    angles = np.einsum("i,j->ij", np.arange(LENGTH), 1.0 / (10000 ** (np.arange(0, 16, 2) / 16))).astype("float32")
    return h * jnp.array(np.cos(angles))


def scaled_torch(h: torch.Tensor) -> torch.Tensor:
    return h * (torch.arange(8) / 3.0)


def scaled_jax(h: jax.Array) -> jax.Array:
    return h * (jnp.arange(8, dtype=jnp.float32) / 3.0)


def branched(h: jax.Array) -> jax.Array:
    return jax.lax.cond(h.sum() < 1e9, lambda h: h.astype(jnp.float32) * np.sqrt(0.1), lambda h: h * 1.0, h)


def accumulated(h: jax.Array) -> jax.Array:
    flat = h.astype(jnp.float32)
    return jnp.einsum("...i,ij->...j", flat, jnp.eye(8, dtype=jnp.bfloat16), preferred_element_type=jnp.float32)


def turned_torch(h: torch.Tensor) -> torch.Tensor:
    return h * torch.sin(2 * torch.pi * (torch.arange(0.5, 8, dtype=h.dtype) / 8))


def turned_jax(h: jax.Array) -> jax.Array:
    """Coordinates in float32 times a Python number that no short decimal gives."""
    return h * jnp.sin(2 * jnp.pi * (jnp.arange(0.5, 8, dtype=jnp.float32) / 8))


def cached(h: jax.Array) -> jax.Array:
    """Through a float32 cache, at a position that is counted in int32."""
    at, cache = jnp.zeros((), jnp.int32), jnp.zeros((len(h), LENGTH + 2, 8), jnp.float32)
    cache = jax.lax.dynamic_update_slice(cache, h, (0, at, 0))
    return jax.lax.dynamic_slice(cache, (0, at, 0), h.shape)


PAIRS: dict[str, tuple[Function, Function]] = {
    "softmax in PyTorch": (lambda h: F.softmax(h, -1, dtype=torch.float32).to(h.dtype), lambda h: jax.nn.softmax(h)),
    "softmax in the port": (
        lambda h: F.softmax(h, -1),
        lambda h: jax.nn.softmax(h.astype(jnp.float32)).astype(h.dtype),
    ),
    "norm in both": (norm_torch, norm_jax),
    "mask": (mask_torch, mask_jax),
    "epsilon of the type": (epsilon_torch, epsilon_jax),
    "scan": (looped, scanned),
    "remat": (norm_torch, jax.checkpoint(norm_jax)),
    "inner jit": (norm_torch, jax.jit(norm_jax)),
    "cond": (lambda h: h.half() * 0.1**0.5, branched),
    "own gradient": (Reversed.apply, reversed_jax),
    "default type": (scaled_torch, scaled_jax),
    "table of numpy": (rotated_torch, rotated_numpy),
    "number times a range": (turned_torch, turned_jax),
    "cache": (lambda h: h * 1.0, cached),
    "type of a product": (lambda h: h.bfloat16(), accumulated),
}


def report_of(name: str, factor: float = 1.0) -> parity.Report:
    torch.manual_seed(0)
    in_torch, in_jax = PAIRS[name]
    model, port = Torch(in_torch), Flax(in_jax, factor)
    return parity.check(model, parity.move(model, port, X), X, steps=1)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", PAIRS)
def test_a_right_pair_with_pins_passes(name: str) -> None:
    report = report_of(name)
    assert report, report.failure()


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["softmax in PyTorch", "scan", "table of numpy", "own gradient"])
def test_a_mistake_smaller_than_float32_rounds_is_seen_beside_a_pin(name: str) -> None:
    assert report_of(name, SMALL).exit_code == 1


def test_the_report_lists_the_pins() -> None:
    report = report_of("norm in both")
    pins = {(pin.side, pin.operation, pin.dtype) for pin in report.models[0].pins}
    assert {("pytorch", "to", "float32"), ("nnx", "cast", "float32")} <= pins
    assert all(pin.place.startswith("test_lifted.py:") for pin in report.models[0].pins)
    line = norm_torch.__code__.co_firstlineno + 1
    assert f"pytorch: lifted to float64: to of float32 at test_lifted.py:{line}" in str(report)
    assert report.to_json()["models"][0]["pins"]
    assert "fix a type" in page(report)


def test_code_in_a_folder_called_like_a_library_is_the_models_own(tmp_path: Path) -> None:
    """A checkout may lie in a folder called `parity`: the place of a pin goes by the module's name."""
    place = tmp_path / "parity" / "torch" / "norms.py"
    place.parent.mkdir(parents=True)
    place.write_text("def norm(h):\n    return h.float()\n")
    spec = importlib.util.spec_from_file_location("norms", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model, port = Torch(module.norm), Flax(lambda h: h)
    report = parity.check(model, parity.move(model, port, X), X, steps=1)
    assert [pin.place for pin in report.models[0].pins] == ["norms.py:2"]


def test_a_pair_without_pins_lists_none() -> None:
    torch.manual_seed(0)
    model, port = Torch(torch.tanh), Flax(jnp.tanh)
    report = parity.check(model, parity.move(model, port, X), X, steps=1)
    assert report.models[0].pins == ()
    assert "lifted" not in str(report)


def test_linen_is_lifted_too() -> None:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(3, name="b")(norm_jax(linen.Dense(8, name="a")(x)))

    torch.manual_seed(0)
    model, net = Torch(norm_torch), Net()
    port = parity.move(model, (net, net.init(jax.random.key(0), jnp.array(X))), X)
    report = parity.check(model, port, X, steps=1)
    assert report, report.failure()


def test_a_parameter_of_linen_may_be_drawn_in_float32() -> None:
    """Linen traces the draw at every call, for its shape. A mistake in the parameter is seen still."""

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.randn(1, WIDTH))
            self.fc = torch.nn.Linear(WIDTH, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x + self.shift)

    class Net(linen.Module):
        factor: float = 1.0

        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            shift = self.param("shift", linen.initializers.normal(0.02), (1, WIDTH), jnp.float32)
            return linen.Dense(3, name="fc")(x + self.factor * shift)

    torch.manual_seed(0)
    model, net = Shifted(), Net()
    _, variables = parity.move(model, (net, net.init(jax.random.key(0), jnp.array(X))), X)
    report = parity.check(model, (net, variables), X, steps=1)
    assert report, report.failure()
    assert not parity.check(model, (Net(SMALL), variables), X, steps=1)


def test_a_parameter_of_another_shape_than_linen_draws_is_refused() -> None:
    """Flax refuses to run such a model, and so does the check: a shape that broadcasts would pass."""

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(WIDTH, 3)
            self.scale = torch.nn.Parameter(torch.randn(1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * self.scale

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(3, name="fc")(x) * self.param("scale", linen.initializers.ones_init(), (3,))

    torch.manual_seed(0)
    model = Scaled()
    dense = {"kernel": jnp.array(model.fc.weight.detach().numpy().T), "bias": jnp.array(model.fc.bias.detach().numpy())}
    variables = {"params": {"fc": dense, "scale": jnp.array(model.scale.detach().numpy())}}
    with pytest.raises(UserError, match="scale"):
        parity.check(model, (Net(), variables), X, steps=1)


@pytest.mark.nightly
def test_a_schedule_that_counts_in_float32_passes() -> None:
    """Optax divides an int32 count, which is float32 even in JAX's x64 mode."""
    torch.manual_seed(0)
    model, port = Torch(torch.tanh), Flax(jnp.tanh)

    def optimizer(parameters: Any) -> Any:
        adamw = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
        return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / 10)

    for rate, code in ((1e-3, 0), (1e-3 * SMALL, 1)):
        tx = optax.adamw(lambda count, rate=rate: rate * (1 - count / 10))
        report = parity.check(model, parity.move(model, port, X), X, optimizer=optimizer, tx=tx, steps=3)
        assert report.exit_code == code, str(report)


def test_code_is_left_in_its_own_types_behind_the_check() -> None:
    """What JAX traced while casts gave float64 is not what it runs for the caller."""
    assert report_of("inner jit")
    with jax.enable_x64(True):
        assert jax.jit(lambda h: h.astype(jnp.float32))(jnp.ones(3)).dtype == jnp.float32
        assert jnp.asarray(1.0, jnp.float32).dtype == jnp.float32
        assert jnp.finfo(jnp.float64).bits == 64
    assert np.arange(3).astype("float32").dtype == np.float32
    assert type(np.arange(3)) is np.ndarray
    assert torch.get_default_dtype() == torch.float32
    assert torch.finfo(torch.float64).bits == 64


def test_a_traced_program_alone_is_rewritten_where_jax_cannot_be_told() -> None:
    """Without the hook into JAX's casts what is left is numbers that Python's code computed in float32."""

    def narrow(x: jax.Array) -> jax.Array:
        return (scanned(x) * 0.1 + norm_jax(x) + branched(x) * 0.25).sum()

    with jax.enable_x64(True):
        x = jnp.array(X)
        exact = lifted_flax.program(narrow, Pins("nnx"))(x)
        with unittest.mock.patch.object(lifted_flax, "CONVERT", "absent"):
            rewritten = lifted_flax.program(narrow, Pins("nnx"))(x)
    assert exact.dtype == rewritten.dtype == np.float64
    assert abs(float(rewritten) - float(exact)) < 1e-7 * abs(float(exact))


def test_what_cannot_be_lifted_is_named() -> None:
    def callback(h: jax.Array) -> jax.Array:
        narrow = h.astype(jnp.float32)
        return jax.pure_callback(lambda a: np.tanh(a), jax.ShapeDtypeStruct(h.shape, jnp.float32), narrow)

    pins = Pins("nnx")
    with jax.enable_x64(True), unittest.mock.patch.object(lifted_flax, "CONVERT", "absent"):
        jax.make_jaxpr(lifted_flax.program(callback, pins))(jnp.array(X))
    assert [pin.operation for pin in pins if pin.kind == "kept"] == ["pure_callback"]


def cleared(table: np.ndarray, row: int) -> np.ndarray:
    """Return a table whose row for padding is zero."""
    return np.where(np.arange(len(table))[:, None] == row, 0, table)


FREQUENCIES = 10000.0 ** (-np.arange(8) / 8)
ANGLES, LAST = (np.arange(40)[:, None] * f for f in (FREQUENCIES, 10000.0 ** (-np.arange(8) / 7)))
TABLES: dict[str, np.ndarray] = {
    "frequencies": FREQUENCIES,
    "two frequencies": FREQUENCIES[:2],
    "frequencies of Llama 3": 500000.0 ** (-np.arange(64) / 64),
    "scaled positions": FREQUENCIES / 4,
    "halves": np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], 1),
    "interleaved": np.stack([np.sin(ANGLES), np.cos(ANGLES)], -1).reshape(40, 16),
    "doubled": np.concatenate([np.sin(ANGLES)] * 2 + [np.cos(ANGLES)] * 2, 1)[:, None],
    "to the last": np.concatenate(
        [f(np.arange(40)[:, None] * 10000.0 ** (-np.arange(8) / 7)) for f in (np.sin, np.cos)], 1
    ),
    "cleared for padding": cleared(np.concatenate([np.sin(LAST), np.cos(LAST)], 1), 1),
    "cleared later": cleared(np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], 1), 5),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_a_formula_is_computed_again(name: str) -> None:
    exact = TABLES[name]
    found = recomputed(exact.astype(np.float32))
    assert found is not None
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "table",
    [
        np.random.default_rng(0).standard_normal((8, 8)),
        np.tril(np.ones((6, 6))),
        np.ones(8),
        np.linspace(0, 1, 9),
        np.array([1.0, 0.7123457]),
        FREQUENCIES * (1 + 1e-5 * np.arange(8)),
        np.full(8, np.nan),
        np.zeros(0),
        np.eye(6)[[0, 1, 1, 1]] * [1, 0, 0, 0, 0, 0],
        cleared(np.concatenate([np.sin(1.01 * LAST), np.cos(LAST)], 1), 1),
    ],
    ids=[
        "random",
        "mask",
        "ones",
        "line",
        "two numbers",
        "another formula",
        "NaN",
        "empty",
        "zeros",
        "cleared, another formula",
    ],
)
def test_other_tables_are_left_as_they_are(table: np.ndarray) -> None:
    assert recomputed(table.astype(np.float32)) is None


def test_tables_are_told_apart_in_the_report() -> None:
    """Frequencies are computed again; what no formula is known of keeps float32's rounding, and is named."""
    other = np.random.default_rng(1).standard_normal(8).astype(np.float32)

    def in_torch(h: torch.Tensor) -> torch.Tensor:
        return rotated_torch(h) * torch.from_numpy(other)

    torch.manual_seed(0)
    model, port = Torch(in_torch), Flax(lambda h: rotated_numpy(h) * jnp.asarray(other))
    report = parity.check(model, parity.move(model, port, X), X, steps=1)
    assert report, report.failure()
    kept = {pin.side for pin in report.models[0].pins if pin.kind == TABLE}
    assert kept == {"pytorch", "nnx"}
    assert "made in float32, whose rounding stays: array of float32 at test_lifted.py:" in str(report)


class Places(torch.nn.Module):
    """An instance norm, and a layer that takes the places of an image first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = torch.nn.InstanceNorm2d(4, affine=True), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x).permute(2, 3, 0, 1)).square().mean((0, 1))


class NNXPlaces(nnx.Module):
    def __init__(self, factor: float = 1.0) -> None:
        self.scale, self.shift = nnx.Param(jnp.ones(4)), nnx.Param(jnp.zeros(4))
        self.head, self.factor = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: Any) -> Any:
        centred = x - x.mean((1, 2), keepdims=True)
        y = centred / jnp.sqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-5)
        y = y * self.scale[...] + self.shift[...]
        slope = jax.lax.stop_gradient(y) + self.factor * (y - jax.lax.stop_gradient(y))
        return jnp.square(self.head(slope)).mean((1, 2))


def test_the_gradient_of_an_instance_norm_is_exact() -> None:
    """PyTorch 2.13's own is off by as much as its size where the places come first in memory."""
    torch.manual_seed(0)
    model, images = Places(), np.random.default_rng(0).standard_normal((3, 4, 8, 6))
    names = {"norm.weight": "scale", "norm.bias": "shift"}
    report = parity.check(model, parity.move(model, NNXPlaces(), images, names=names), images, steps=1, names=names)
    assert report, report.failure()
    wrong = parity.move(model, NNXPlaces(1.01), images, names=names)
    assert not parity.check(model, wrong, images, steps=1, names=names)
