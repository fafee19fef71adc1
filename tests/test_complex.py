"""Parameters that are complex numbers, as the spectral weights of a Fourier neural operator are."""

from __future__ import annotations

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.numerics import bounds
from ports import weights

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 8, 5))
MODES = 3


class Net(torch.nn.Module):
    """(batch, length, channels): a filter on the lowest frequencies between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
        self.filter = torch.nn.Parameter(0.3 * torch.randn(MODES, 4, 4, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        spectrum = torch.fft.rfft(x, dim=1)
        kept = torch.einsum("bki,kio->bko", spectrum[:, :MODES], self.filter)
        return self.last(torch.tanh(torch.fft.irfft(kept, n=x.shape[1], dim=1)))


def filtered(x: jax.Array, weight: jax.Array, norm: str | None = None) -> jax.Array:
    spectrum = jnp.fft.rfft(x, axis=1, norm=norm)
    kept = jnp.einsum("bki,kio->bko", spectrum[:, :MODES], weight)
    return jnp.tanh(jnp.fft.irfft(kept, n=x.shape[1], axis=1))


class NNXNet(nnx.Module):
    def __init__(self, wrong: str = "") -> None:
        self.first, self.last = (nnx.Linear(i, o, rngs=nnx.Rngs(0)) for i, o in ((5, 4), (4, 2)))
        self.filter, self.wrong = nnx.Param(jnp.ones((MODES, 4, 4), jnp.complex64)), wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.filter.get_value()
        if self.wrong == "conjugate":
            weight = weight.conj()
        if self.wrong == "gradient":  # the imaginary part is not trained
            weight = weight.real + 1j * jax.lax.stop_gradient(weight.imag)
        return self.last(filtered(self.first(x), weight, "ortho" if self.wrong == "norm" else None))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Dense(4, name="first")(x)
        weight = self.param("filter", lambda _: jnp.ones((MODES, 4, 4), jnp.complex64))
        return linen.Dense(2, name="last")(filtered(x, weight))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def linen_port() -> Any:
    return LinenNet(), LinenNet().init(jax.random.key(0), jnp.asarray(X, jnp.float32))


@pytest.mark.sample(1)
@pytest.mark.parametrize("build", [NNXNet, linen_port], ids=["nnx", "linen"])
def test_a_faithful_port_passes(net: Net, build: Any) -> None:
    report = parity.check(net, parity.move(net, build(), X), X, steps=2)
    assert report, report.failure()


def test_every_bit_is_moved(net: Net) -> None:
    port = parity.move(net, NNXNet(), X)
    assert port.filter.get_value().dtype == jnp.complex64
    assert np.asarray(port.filter.get_value()).tobytes() == weights.read(net)["filter"].tobytes()


@pytest.mark.sample(1)
@pytest.mark.parametrize("wrong", ["conjugate", "norm"])
def test_a_wrong_value_is_caught(net: Net, wrong: str) -> None:
    report = parity.check(net, parity.move(net, NNXNet(wrong), X), X, steps=1)
    assert report.exit_code == 1
    assert report.models[0].findings[0].layer == "(the network)"


def test_a_gradient_without_its_imaginary_part_is_caught(net: Net) -> None:
    report = parity.check(net, parity.move(net, NNXNet("gradient"), X), X, steps=1)
    first = report.models[0].first_divergence
    assert report.exit_code == 1
    assert first is not None
    assert first.quantity == "gradient.parameter"


def test_distance_and_norm_count_both_parts() -> None:
    a = np.array([3 + 4j, 0])
    assert bounds.norm(a) == 5
    assert bounds.distance(a, a.conj()) == 8


def test_both_parts_are_moved_by_a_unit() -> None:
    a = np.array([[1 + 2j, 3 - 4j], [0, 5j]])
    moved = bounds.one_ulp(a, np.random.default_rng(0))
    assert moved.shape == a.shape
    assert (np.real(moved) != np.real(a)).tolist() == [[True, True], [False, False]]
    assert (np.imag(moved) != np.imag(a)).tolist() == [[True, True], [False, True]]
    assert np.abs(moved - a).max() < 1e-15


class RealView(torch.nn.Module):
    """A complex diagonal, kept as `torch.view_as_real` has it: the last axis is the real and the imaginary part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
        self.C = torch.nn.Parameter(torch.view_as_real(torch.randn(4, MODES, dtype=torch.cfloat)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(self.first(x), dim=1)[:, :MODES]
        kept = spectrum * torch.view_as_complex(self.C).T
        return self.last(torch.tanh(torch.fft.irfft(kept, n=x.shape[1], dim=1)))


class TwoParts(nnx.Module):
    """The same with a parameter for each part."""

    def __init__(self, wrong: str = "") -> None:
        self.first, self.last = (nnx.Linear(i, o, rngs=nnx.Rngs(0)) for i, o in ((5, 4), (4, 2)))
        self.C_im, self.C_re = (nnx.Param(jnp.ones((4, MODES))) for _ in range(2))
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = self.C_re[...], self.C_im[...]
        weight = parts[1] + 1j * parts[0] if self.wrong == "exchanged" else parts[0] + 1j * parts[1]
        kept = jnp.fft.rfft(self.first(x), axis=1)[:, :MODES] * weight.T
        y = jnp.fft.irfft(kept, n=x.shape[1], axis=1)
        return self.last(jax.nn.sigmoid(y) if self.wrong == "activation" else jnp.tanh(y))


@pytest.mark.parametrize("wrong", ["", "activation"])
def test_the_parts_may_be_parameters_of_their_own(wrong: str) -> None:
    """Computing tells which is which; behind a mistake their names do."""
    torch.manual_seed(0)
    net = RealView()
    port = parity.move(net, TwoParts(wrong), X)
    for part, own in zip((port.C_re, port.C_im), net.C.detach().unbind(-1), strict=True):
        np.testing.assert_array_equal(part[...], own.numpy())
    report = parity.check(net, port, X)
    assert report.ok is not bool(wrong)
    assert len(report.models[0].findings) == bool(wrong)


def test_exchanged_parts_are_moved_as_the_port_computes() -> None:
    """The names are wrong there, and the port right: it computes with each part in the other's place."""
    torch.manual_seed(0)
    net = RealView()
    port = parity.move(net, TwoParts("exchanged"), X)
    np.testing.assert_array_equal(port.C_re[...], net.C.detach()[..., 1].numpy())
    assert parity.check(net, port, X).ok


class Scaled(torch.nn.Module):
    """Its parameter has a name without a Latin letter."""

    def __init__(self) -> None:
        super().__init__()
        self.μ = torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * self.μ)


class OneArray(nnx.Module):
    """The parameters of two such layers."""

    def __init__(self) -> None:
        self.scales = nnx.Param(jnp.ones((2, 5)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x * self.scales[0]) * self.scales[1])


def test_names_without_a_latin_letter_are_names() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(Scaled(), Scaled())
    assert parity.check(net, parity.move(net, OneArray(), X), X, steps=0)
