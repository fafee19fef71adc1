"""The check of other people's models: no names given, mistakes named, and questions that cannot be put."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx
from meta import examples as own

import parity
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 18, 14)).astype(np.float32)
SERIES = RNG.standard_normal((3, 9, 5)).astype(np.float32)
TOKENS, PADDING = RNG.integers(0, 17, (3, 7)), np.arange(7) >= np.array([5, 7, 6])[:, None]


def linen(module: nn.Module, *inputs: Any) -> tuple[nn.Module, Any]:
    return module, module.init(jax.random.key(0), *inputs)


def unet(**options: Any) -> tuple[Any, ...]:
    return own.UNet(), linen(own.LinenUNet(**options), jnp.zeros((2, 18, 14, 3))), IMAGES


def encoder(**options: Any) -> tuple[Any, ...]:
    return own.Encoder(), own.NNXEncoder(**options, rngs=nnx.Rngs(0)), TOKENS, PADDING


def lstm(**options: Any) -> tuple[Any, ...]:
    return own.ResidualLSTM(), linen(own.LinenResidualLSTM(**options), SERIES), SERIES


def checked(model: Any, flax: Any, *inputs: Any, **options: Any) -> parity.Report:
    torch.manual_seed(0)
    return parity.check(model, parity.move(model, flax, *inputs), *inputs, **options)


ACCEPTED = {"accept": ["bn-running-var"]}


@pytest.mark.nightly
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("make", "options", "layers"),
    [(unet, ACCEPTED, 23), (encoder, {}, 14), (lstm, {}, 5)],
    ids=["unet", "encoder", "lstm"],
)
def test_right_pair_passes_without_names(make: Any, options: Any, layers: int) -> None:
    report = checked(*make(), steps=2, **options)
    assert report, str(report)
    assert f"{layers} layers paired" in report.models[0].note


@pytest.mark.nightly
def test_nnx_lstm_passes() -> None:
    report = checked(own.ResidualLSTM(), own.NNXResidualLSTM(rngs=nnx.Rngs(0)), SERIES)
    assert report, str(report)


def test_volumes_pass() -> None:
    class Port(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(2, 4, (3, 3, 3), padding=1, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.conv(x).mean((1, 2, 3))

    model = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    report = checked(model, Port(), RNG.standard_normal((2, 2, 4, 5, 6)), steps=1)
    assert report, str(report)


@pytest.mark.parametrize("named_twice", [False, True])
def test_tied_weights_pass(named_twice: bool) -> None:
    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.up(self.embed(tokens)))

    class Flax(nnx.Module):
        def __init__(self) -> None:
            self.embed, self.up = nnx.Embed(7, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            if named_twice:
                self.decoder = self.embed

        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.embed.attend(self.up(self.embed(tokens)))

    report = checked(Torch(), Flax(), TOKENS % 7)
    assert report, str(report)


class AlsoShared(torch.nn.Module):
    """An embedding that is used by its second name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = torch.nn.Embedding(17, 4)
        self.encoder = torch.nn.ModuleDict({"embed": torch.nn.Embedding(17, 4), "out": torch.nn.Linear(4, 3)})
        self.encoder["embed"].weight = self.shared.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder["out"](torch.tanh(self.encoder["embed"](ids)))


class Embedding(nnx.Module):
    def __init__(self, stopped: bool = False) -> None:
        rngs = nnx.Rngs(0)
        embed, out = nnx.Embed(17, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.encoder, self.stopped = nnx.Dict(embed=embed, out=out), stopped

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.encoder["embed"](ids)
        return self.encoder["out"](jnp.tanh(jax.lax.stop_gradient(x) if self.stopped else x))


@pytest.mark.sample(1)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_tensor_is_trained_under_the_name_that_is_paired(stopped: bool) -> None:
    report = checked(AlsoShared(), Embedding(stopped), TOKENS)
    wrong = {row.tensor for row in report.models[0].rows if row.quantity == "gradient.parameter" and not row.ok}
    assert wrong == ({"encoder.embed.weight"} if stopped else set())
    assert bool(report) is not stopped


def test_rms_norm_without_an_epsilon_has_that_of_float32() -> None:
    norm = nnx.RMSNorm(5, epsilon=float(np.finfo(np.float32).eps), rngs=nnx.Rngs(0))
    report = checked(torch.nn.RMSNorm(5), norm, SERIES)
    assert report, str(report)


@pytest.mark.nightly
def test_flax_batch_norm_is_a_named_difference() -> None:
    (model,) = checked(*unet()).models
    assert {row.quantity for row in model.rows if not row.ok} == {"statistics"}
    (finding,) = model.findings
    assert finding.trap == "bn-running-var"
    assert len({finding.layer, *finding.also}) == 10


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("make", "options", "mistake", "layer", "trap"),
    [
        (encoder, {}, "epsilon", "encoder.layers.1.norm1", "norm-epsilon-1e-6"),
        (encoder, {}, "gelu", "encoder.layers.1", "gelu-tanh"),
        (lstm, {}, "residual", "(the network)", "sum-lacks-first"),
        (lstm, {}, "last", "(the network)", "last-is-first"),
        (unet, ACCEPTED, "pad", "(the network)", "pad-other-side"),
        pytest.param(unet, ACCEPTED, "relu", "down2.1.double_conv", "relu-missing", marks=pytest.mark.nightly),
    ],
)
def test_planted_mistake_is_found_where_it_is(make: Any, options: Any, mistake: str, layer: str, trap: str) -> None:
    (model,) = checked(*make(mistake=mistake), steps=1, **options).models
    assert not model.matches
    assert (model.findings[0].layer, model.findings[0].trap) == (layer, trap), model.findings
    assert {f.trap for f in model.findings} == {trap}, model.findings


class Random(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + torch.randperm(9)[0]


@pytest.mark.parametrize(
    ("model", "flax", "inputs", "said"),
    [
        (torch.nn.Linear(5, 2), nnx.Linear(5, 2, rngs=nnx.Rngs(0)), (np.full((2, 5), np.nan),), "NaN"),
        (torch.nn.Linear(5, 2), nnx.Linear(5, 2, rngs=nnx.Rngs(0)), (np.ones((2, 4)),), "PyTorch model raises"),
        (torch.nn.Linear(5, 2), nnx.Linear(5, 2, rngs=nnx.Rngs(0)), (np.array("x"),), "expected numbers"),
        (Random(5, 2), nnx.Linear(5, 2, rngs=nnx.Rngs(0)), (np.ones((2, 5)),), "random in eval mode"),
        (
            torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)),
            nnx.Linear(5, 5, rngs=nnx.Rngs(0)),
            (np.ones((2, 5)),),
            "cannot be paired",
        ),
    ],
    ids=["nan", "rank", "type", "random", "number of layers"],
)
def test_question_that_cannot_be_put(model: Any, flax: Any, inputs: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parity.check(model, flax, *inputs)


def test_fresh_weights_are_one_finding_and_nothing_else_differs() -> None:
    (model,) = parity.check(*lstm(), steps=1).models
    assert [row.quantity for row in model.rows if not row.ok] == ["weights"]
    assert [f.trap for f in model.findings] == ["weights-not-moved"]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("change", "trap"),
    [
        (lambda k: k.T, "linear-transposed"),
        (jnp.zeros_like, "weight-lost"),
        (lambda k: k.astype(jnp.float16).astype(jnp.float32), "weights-through-float16"),
        (lambda k: k + 1e-3, None),
        (lambda k: k.at[0, 0].set(jnp.nan), None),
    ],
)
def test_wrong_weight_is_named(change: Any, trap: str | None) -> None:
    class Flax(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(5, 5, rngs=nnx.Rngs(i)) for i in range(4)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return x

    model = torch.nn.Sequential(*(m for _ in range(4) for m in (torch.nn.Linear(5, 5), torch.nn.Tanh())))
    flax = parity.move(model, Flax(), np.ones((2, 5)))
    kernel = flax.layers[2].kernel
    kernel.set_value(change(kernel.get_value()))
    (checked,) = parity.check(model, flax, RNG.standard_normal((2, 5)), steps=1).models
    assert [row.quantity for row in checked.rows if not row.ok] == ["weights"]
    assert [(f.layer, f.trap) for f in checked.findings] == [("4", trap)]


class Jitted(nnx.Module):
    """Its layers' values end in a program of its own: the whole is compared, and layers are not."""

    def __init__(self, activation: Any, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.activation = activation

    @nnx.jit
    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.down(self.activation(self.up(x)))


@nn.jit
class LinenJitted(nn.Module):
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(self.activation(nn.Dense(8)(x)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_models_under_jit_are_checked_and_their_mistakes_named(port: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    for activation, traps in ((nn.relu, []), (nn.silu, ["relu-is-silu"])):
        flax = Jitted(activation, nnx.Rngs(0)) if port == "nnx" else linen(LinenJitted(activation), x)
        (found,) = parity.check(model, parity.move(model, flax, x), x, steps=1).models
        assert found.ok is (not traps)
        assert [f.trap for f in found.findings] == traps
        assert port == "nnx" or {row.quantity for row in found.rows} >= {"layer.eval"}
