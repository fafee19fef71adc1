"""Filtering along the rows is the usual convolution, with its rounding, and is taken where it is to be alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn

from ports.fast import filtering
from ports.fast.pytorch import FastConv2d


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def layer(channels: int = 64, out: int = 64, **how: Any) -> FastConv2d:
    conv = FastConv2d(channels, out, 3, **{"padding": 1, **how})
    return conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), (1, 2)])
@pytest.mark.parametrize("height", [4, 5, 6, 7, 12])
def test_it_is_the_usual_convolution(height: int, padding: Any, bias: bool) -> None:
    conv, x = layer(5, 3, padding=padding, bias=bias).double(), images(2, 5, height, 9).double()
    got = filtering.convolve(x, conv)
    assert distance(got, conv(x)) < 1e-14
    assert got.stride(1) == 1


@torch.no_grad()
def test_its_rounding_in_float32_is_a_few_times_that_of_the_usual_order() -> None:
    conv, x = layer(256, 256), images(2, 256, 14, 14).relu()
    usual, filtered = conv(x), filtering.convolve(x, conv)
    expected = conv.double()(x.double())
    assert distance(filtered, expected) < min(10 * distance(usual, expected), 2e-6)


@torch.no_grad()
@pytest.mark.parametrize("sums", ["of_inputs", "of_weights", "to_outputs"])
def test_a_wrong_sign_in_any_of_the_sums_is_seen(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(filtering, sums)
    conv, x = layer(5, 3).double(), images(2, 5, 8, 8).double()
    for i in range(len(right([torch.ones(1)] * 6))):
        wrong = lambda terms, i=i: [-term if j == i else term for j, term in enumerate(right(terms))]  # noqa: E731
        monkeypatch.setattr(filtering, sums, wrong)
        assert distance(filtering.convolve(x, conv), conv(x)) > 1e-3


def convolutions(conv: nn.Module, x: torch.Tensor, freezing: bool = True, grad: bool = False) -> int:
    """How many a compiled program has for this one."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(graph)
        return graph.forward

    with inductor.patch(freezing=freezing), torch.set_grad_enabled(grad):
        torch.compile(conv, backend=backend)(x)
    (graph,) = found
    return sum("conv2d" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.usefixtures("no_type_checks")
def test_compiled_inference_takes_it_where_weights_are_frozen() -> None:
    assert convolutions(layer(), images(2, 64, 28, 28)) == 6


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("conv", "x", "how"),
    [
        (layer(), images(2, 64, 28, 28), {"freezing": False}),
        (layer(), images(2, 64, 28, 28), {"grad": True}),
        (layer(), images(2, 64, 26, 28), {}),
        (layer(), torch.randn(2, 64, 28, 28), {}),
        (layer().bfloat16(), images(2, 64, 28, 28).bfloat16(), {}),
        (layer().double(), images(2, 64, 28, 28).double(), {}),
        (layer(out=63), images(2, 64, 28, 28), {}),
        (layer(stride=2), images(2, 64, 28, 28), {}),
        (layer(dilation=2), images(2, 64, 28, 28), {}),
        (layer(groups=2), images(2, 64, 28, 28), {}),
        (layer(padding="same"), images(2, 64, 28, 28), {}),
        (layer(padding_mode="reflect"), images(2, 64, 28, 28), {}),
    ],
    ids=[
        *("plain", "gradients", "small", "nchw", "bfloat16", "float64"),
        *("narrow", "stride", "dilation", "groups", "same", "reflect"),
    ],
)
def test_all_others_stay_one_convolution(conv: nn.Module, x: torch.Tensor, how: dict[str, bool]) -> None:
    assert convolutions(conv, x, **how) == 1


@pytest.mark.usefixtures("no_type_checks")
def test_under_autocast_and_in_eager_mode_it_stays_one() -> None:
    conv, x = layer(), images(2, 64, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolutions(conv, x) == 1
    with inductor.patch(freezing=True), torch.no_grad():
        assert not filtering.pays(conv, x)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_keeps_its_convolution(strict: bool) -> None:
    with inductor.patch(freezing=True), torch.no_grad():
        program = torch.export.export(layer(), (images(2, 64, 28, 28),), strict=strict)
    assert sum("conv2d" in str(node.target) for node in program.graph.nodes) == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("no_type_checks")
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_what_inductor_makes_of_it_is_the_usual_convolution() -> None:
    conv, x = layer(), images(2, 64, 28, 28)
    with inductor.patch(freezing=True):
        assert distance(torch.compile(conv)(x), conv(x)) < 2e-6
