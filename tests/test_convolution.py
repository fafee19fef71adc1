"""The convolutions of the ports on CPUs are XLA's and PyTorch's, and so are their gradients."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from ports.errors import UserError
from ports.fast import convolution, pytorch

pytestmark = pytest.mark.usefixtures("quick")

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(window: int, channels: int, out: int, groups: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 7, channels))  # not a small image
    return jnp.array(x), jnp.array(rng.normal(size=(window, window, channels // groups, out)))


def both(window: int, stride: int, groups: int) -> tuple[Any, Any]:
    pad = window // 2
    options: Any = {"dimension_numbers": NHWC, "feature_group_count": groups}
    given = ((stride, stride), ((pad, pad), (pad, pad)))
    return (
        lambda x, kernel: convolution.on_cpu(x, kernel, *given, **options),
        lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *given, **options),
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "out"), [(4, 8), (8, 4), (4, 4)])
@pytest.mark.parametrize("window", [1, 3])
def test_it_is_xlas_with_its_gradients(window: int, channels: int, out: int, stride: int, groups: int) -> None:
    ours, theirs = both(window, stride, groups)
    with jax.enable_x64(True):
        x, kernel = arrays(window, channels, out, groups)

        def found(f: Any, x: Any, kernel: Any) -> Any:
            return jax.value_and_grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), (0, 1))(x, kernel)

        @jax.jit
        def all_of_them(x: Any, kernel: Any) -> Any:
            each = jax.vmap(jax.grad(lambda kernel, x: jnp.sin(ours(x[None], kernel)).sum()), (None, 0))(kernel, x)
            return found(ours, x, kernel), found(theirs, x, kernel), each

        one_way, other_way, each = all_of_them(x, kernel)
        for one, other in zip(jax.tree.leaves(one_way), jax.tree.leaves(other_way), strict=True):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(each.sum(0), other_way[1][1], rtol=1e-12, atol=1e-12)


@pytest.mark.sample(3)
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((2, 1), (1, 3)), ((3, 3), (3, 3)), "SAME"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (1, 3), (7, 7)])
def test_small_images(size: tuple[int, int], stride: int, dilation: int, padding: Any) -> None:
    rng = np.random.default_rng(0)
    options: Any = {"dimension_numbers": NHWC, "rhs_dilation": (dilation, dilation)}
    with jax.enable_x64(True):
        x, kernel = jnp.array(rng.normal(size=(2, *size, 4))), jnp.array(rng.normal(size=(3, 3, 4, 5)))

        def found(f: Any, x: Any, kernel: Any) -> Any:
            def objective(x: Any, kernel: Any) -> Any:
                return jnp.sin(f(x, kernel, (stride, stride), padding, **options)).sum()

            return f(x, kernel, (stride, stride), padding, **options), jax.grad(objective, (0, 1))(x, kernel)

        def both(x: Any, kernel: Any) -> Any:
            return found(convolution.on_cpu, x, kernel), found(jax.lax.conv_general_dilated, x, kernel)

        ours, theirs = jax.jit(both)(x, kernel)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.sample(2)
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "groups", "parts"), [(128, 32, 4), (96, 3, 3), (64, 64, 2), (40, 5, 1)])
def test_groups_are_a_few_convolutions(channels: int, groups: int, parts: int, stride: int, window: int) -> None:
    ours, theirs = both(window, stride, groups)
    with jax.enable_x64(True):
        x, kernel = arrays(window, channels, 2 * channels, groups)

        def found(f: Any) -> Any:
            return jax.value_and_grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), (0, 1))

        one_way, other_way = jax.jit(lambda x, kernel: (found(ours)(x, kernel), found(theirs)(x, kernel)))(x, kernel)
        for one, other in zip(jax.tree.leaves(one_way), jax.tree.leaves(other_way), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        forward, program = (str(jax.make_jaxpr(f)(x, kernel)) for f in (ours, found(ours)))
    assert set(re.findall(r"feature_group_count=(\d+)", program)) <= {"1"}
    assert len(re.findall(r"= conv_general_dilated\[|= custom_vjp_call\w*\[", forward)) == parts


@pytest.mark.parametrize(("size", "product"), [(7, True), (8, False)])
def test_which_images_are_small(size: int, product: bool) -> None:
    x, kernel = jnp.zeros((2, size, size, 4)), jnp.zeros((3, 3, 4, 4))
    ours, _ = both(3, 1, 1)
    assert ("conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel))) == product


@pytest.mark.parametrize("window", [1, 3])
def test_a_number_that_is_none_stays_where_it_is(window: int) -> None:
    """Also in the first place, by which `kept` decides which way XLA goes."""
    ours, theirs = both(window, 1, 1)
    x, kernel = arrays(window, 4, 4)
    for at in ((0, 0, 0, 0), (1, 3, 2, 1)):
        broken = x.at[at].set(jnp.nan)
        (one, back), (other, back_too) = jax.vjp(ours, broken, kernel), jax.vjp(theirs, broken, kernel)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert 0 < np.isnan(one).sum() < one.size
        for a, b in zip(back(jnp.ones_like(one)), back_too(jnp.ones_like(one)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.sample(1)
@pytest.mark.parametrize("window", [1, 3])
def test_forward_mode_is_an_error_that_says_what_to_do(window: int) -> None:
    channels = 4 if window == 1 else 64
    x, kernel = jnp.zeros((2, 32, 32, channels)), jnp.zeros((window, window, channels, 64))

    def fast(x: Any) -> Any:
        pads = ((window // 2, window // 2),) * 2
        return convolution.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=NHWC)

    assert jax.jit(fast)(x).shape == (2, 32, 32, 64)
    with pytest.raises(UserError, match=r"no forward mode .*use the plain network"):
        jax.jvp(fast, (x,), (x,))
    with pytest.raises(UserError, match=r"no forward mode .*use the plain network"):
        jax.jacfwd(lambda scale: fast(x * scale))(1.0)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        ((2, 8, 8, 4), {"lhs_dilation": (2, 2)}),
        ((2, 8, 8, 4), {"preferred_element_type": jnp.float32}),
        ((2, 8, 4), {}),
    ],
    ids=["dilated_input", "other_option", "one_dimension"],
)
def test_what_it_does_not_know_is_left_to_xla(x: tuple[int, ...], options: Any) -> None:
    window, numbers = (3,) * (len(x) - 2), NHWC if len(x) == 4 else ("NWC", "WIO", "NWC")
    ones, pads = tuple(1 for _ in window), tuple((1, 1) for _ in window)
    images, kernel = jnp.ones(x), jnp.ones((*window, 4, 5))

    def fast(x: Any) -> Any:
        return convolution.conv_general_dilated(x, kernel, ones, pads, dimension_numbers=numbers, **options)

    usual = jax.lax.conv_general_dilated(images, kernel, ones, pads, dimension_numbers=numbers, **options)
    assert "platform_index" not in str(jax.make_jaxpr(fast)(images))
    np.testing.assert_array_equal(fast(images), usual)


def test_a_padded_window_of_one_pixel() -> None:
    with jax.enable_x64(True):
        x, kernel = arrays(1, 4, 8)
        given: Any = ((1, 1), ((1, 0), (2, 1)))
        for f in (convolution.on_cpu, convolution.conv_general_dilated):
            found = f(x, kernel, *given, dimension_numbers=NHWC)
            usual = jax.lax.conv_general_dilated(x, kernel, *given, dimension_numbers=NHWC)
            np.testing.assert_allclose(found, usual, rtol=1e-12, atol=1e-12)


def test_a_program_for_two_platforms_has_both_ways() -> None:
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((1, 1, 4, 5))

    def fast(x: Any) -> Any:
        return convolution.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)

    program = jax.export.export(jax.jit(fast), platforms=("cpu", "cuda"))(x).mlir_module()
    assert "stablehlo.dot_general" in program
    assert "stablehlo.convolution" in program


@pytest.mark.parametrize("change", [{}, {"padding": 1}, {"kernel_size": 3}, {"groups": 2}, {"bias": False}])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
def test_pytorchs_with_a_stride(stride: Any, change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers: Any = {"in_channels": 4, "out_channels": 6, "kernel_size": 1, "stride": stride, **change}
    ours, theirs = pytorch.FastConv2d(**layers).double(), nn.Conv2d(**layers).double()
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(2, 4, 8, 7, dtype=torch.float64), torch.randn(4, 8, 7, dtype=torch.float64)):
        found = []
        for layer in (ours, theirs):
            images = x.clone().requires_grad_()
            out = layer(images)
            found.append((out, *torch.autograd.grad(out.sin().sum(), [images, *layer.parameters()])))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_pixel_with_a_stride_is_taken_before_the_product() -> None:
    """Its gradient is a convolution without a stride, which oneDNN is quicker at."""
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    for convolution_of, sliced in ((pytorch.FastConv2d, True), (nn.Conv2d, False)):
        made: Any = convolution_of(4, 6, 1, stride=2)(x).grad_fn
        assert ("Slice" in type(made.next_functions[0][0]).__name__) == sliced
