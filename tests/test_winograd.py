"""Winograd's convolution is the usual one, with its gradients and its rounding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ports.fast import convolution, winograd

NUMBERS = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # as Flax's layers give them


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is so small that it does not pay is done by it."""
    monkeypatch.setattr(winograd, "SMALL_TILES", 1)
    monkeypatch.setattr(winograd, "PRODUCTS", 1)


def arrays(batch: int, size: tuple[int, int], channels: int, out: int, dtype: Any = np.float64) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(batch, *size, channels)), rng.normal(size=(3, 3, channels, out)) / channels
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def ours(x: Any, kernel: Any, padding: Any = 1, stride: int = 1, dilation: int = 1) -> Any:
    return padded(convolution.on_cpu, x, kernel, padding, stride, dilation)


def theirs(x: Any, kernel: Any, padding: Any = 1, stride: int = 1, dilation: int = 1) -> Any:
    return padded(jax.lax.conv_general_dilated, x, kernel, padding, stride, dilation)


def padded(convolve: Any, x: Any, kernel: Any, padding: Any, stride: int, dilation: int) -> Any:
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    strides, apart = (stride, stride), (dilation, dilation)
    return convolve(x, kernel, strides, pads, dimension_numbers=NUMBERS, rhs_dilation=apart)


def taken(x: Any, kernel: Any, *how: Any) -> bool:
    """Whether no convolution of XLA's is left."""
    program = str(jax.make_jaxpr(lambda x, kernel: ours(x, kernel, *how))(x, kernel))
    return "conv_general_dilated" not in program and "name=convolve" in program


@pytest.mark.sample(1)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("batch", "size", "channels", "out", "padding"),
    [
        (2, (16, 16), 32, 32, 1),
        (2, (15, 17), 32, 40, 1),
        (8, (7, 8), 48, 32, "SAME"),
        (8, (7, 8), 32, 32, "VALID"),
        (4, (9, 10), 32, 33, ((2, 0), (1, 2))),
        (20, (2, 3), 32, 32, 2),
        (64, (2, 2), 32, 32, 1),
    ],
)
def test_it_is_xlas_with_its_gradients(
    batch: int, size: tuple[int, int], channels: int, out: int, padding: Any
) -> None:
    with jax.enable_x64(True):
        x, kernel = arrays(batch, size, channels, out)
        assert taken(x, kernel, padding)

        def found(f: Any) -> Any:
            def objective(x: Any, kernel: Any) -> Any:
                y = f(x, kernel, padding)
                return jnp.sin(y).sum(), y

            return jax.jit(jax.grad(objective, (0, 1), has_aux=True))(x, kernel)

        for one, other in zip(jax.tree.leaves(found(ours)), jax.tree.leaves(found(theirs)), strict=True):
            assert one.shape == other.shape
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("planted", ["of_inputs", "of_weights", "to_outputs"])
def test_a_sign_that_is_wrong_is_seen(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = getattr(winograd, planted)
    monkeypatch.setattr(winograd, planted, lambda values: [-sums(values)[0], *sums(values)[1:]])
    x, kernel = arrays(2, (16, 16), 32, 32, np.float32)
    assert float(jnp.abs(ours(x, kernel) - theirs(x, kernel)).max()) > 0.01


@pytest.mark.usefixtures("small")
@pytest.mark.nightly
def test_it_rounds_as_the_usual_order_does() -> None:
    for size, channels in ((28, 64), (14, 128), (8, 512)):
        x, kernel = arrays(4, (size, size), channels, channels, np.float32)
        with jax.enable_x64(True):
            exact = np.asarray(theirs(jnp.asarray(x, np.float64), jnp.asarray(kernel, np.float64)))

        def off(y: Any, exact: Any = exact) -> float:
            return float(np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact))

        assert taken(x, kernel)
        assert 0 < off(ours(x, kernel)) < 3 * off(theirs(x, kernel))


@pytest.mark.parametrize(
    ("fits", "change"),
    [
        (True, {}),
        (False, {"channels": 127}),
        (False, {"out": 127}),
        (True, {"channels": 32, "out": 512}),
        (False, {"channels": 31, "out": 1024}),
        (False, {"channels": 1024, "out": 31}),
        (True, {"size": (14, 14), "channels": 256}),  # 49 tiles
        (False, {"size": (12, 14), "channels": 256}),  # 42, and products enough
        (True, {"size": (15, 15)}),  # 64, of which some stand out
        (False, {"batch": 128, "size": (1, 16)}),
        (True, {"batch": 8, "size": (7, 7)}),
        (False, {"batch": 7, "size": (7, 7)}),
        (False, {"stride": 2}),
        (False, {"dilation": 2}),
        (True, {"padding": 2}),
        (False, {"padding": 3}),
        (False, {"dtype": jnp.bfloat16}),
        (False, {"window": 1}),
        (False, {"window": 5}),
    ],
)
def test_which_it_takes(fits: bool, change: dict[str, Any]) -> None:
    case: Any = {"batch": 1, "size": (16, 16), "channels": 128, "out": 128, "dtype": jnp.float32, "window": 3} | change
    x = jnp.zeros((case["batch"], *case["size"], case["channels"]), case["dtype"])
    kernel = jnp.zeros((case["window"], case["window"], case["channels"], case["out"]), case["dtype"])
    assert taken(x, kernel, case.get("padding", 1), case.get("stride", 1), case.get("dilation", 1)) == fits


@pytest.mark.usefixtures("small")
def test_groups_take_it_too() -> None:
    x, kernel = jnp.zeros((2, 16, 16, 64)), jnp.zeros((3, 3, 2, 64))

    def grouped(x: Any, kernel: Any) -> Any:
        how: Any = {"dimension_numbers": NUMBERS, "feature_group_count": 32}
        return convolution.on_cpu(x, kernel, (1, 1), ((1, 1), (1, 1)), **how)

    program = str(jax.make_jaxpr(grouped)(x, kernel))
    assert "conv_general_dilated" not in program
    assert "name=convolve" in program


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_or_infinite_reaches_what_it_reaches_anyway(number: float) -> None:
    x, kernel = arrays(2, (16, 16), 32, 32, np.float32)
    for at in ((1, 5, 6, 0), (0, 0, 15, 3)):
        broken = x.at[at].set(number)
        here, usual = (np.isfinite(f(broken, kernel)) for f in (ours, theirs))
        np.testing.assert_array_equal(here, usual)
        assert 0 < (~here).sum() < 10 * 32


@pytest.mark.usefixtures("small")
def test_of_each_image_by_vmap() -> None:
    with jax.enable_x64(True):
        x, kernel = arrays(2, (16, 16), 32, 32)

        def gradient(f: Any) -> Any:
            return jax.grad(lambda kernel, x: jnp.sin(f(x[None], kernel)).sum())

        each = jax.vmap(gradient(ours), (None, 0))(kernel, x)
        np.testing.assert_allclose(each, jax.vmap(gradient(theirs), (None, 0))(kernel, x), rtol=1e-12, atol=1e-13)
