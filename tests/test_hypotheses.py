"""What is said of a mistake that no entry of the catalogue has: PyTorch's computation with one simple change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.diagnosis import hypotheses

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 5, 6))
A = np.random.default_rng(1).standard_normal((4, 5, 5))


class Gate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        mixed = torch.softmax(x @ x.transpose(-2, -1) * 0.25, dim=-1) @ x
        return self.last(torch.atan(mixed) - x.pow(2))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = Gate(), torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(x))


# By operation: what the port computes.
RIGHT: dict[str, Callable[..., jax.Array]] = {
    "scale": lambda x: x * 0.25,
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "atan": jnp.arctan,
    "sub": lambda a, b: a - b,
    "pow": lambda x: x**2,
    "mixed": lambda x: x,
    "end": lambda x, before: x,
}


class NNXGate(nnx.Module):
    def __init__(self, wrong: dict[str, Callable[..., jax.Array]]) -> None:
        self.first, self.last = (nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(2))
        self.does = RIGHT | wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        does, before, x = self.does, x, self.first(x)
        mixed = does["mixed"](does["softmax"](does["scale"](x @ jnp.swapaxes(x, -2, -1))) @ x)
        return self.last(does["end"](does["sub"](does["atan"](mixed), does["pow"](x)), before))


class NNXNet(nnx.Module):
    def __init__(self, **wrong: Callable[..., jax.Array]) -> None:
        self.gate, self.head = NNXGate(wrong), nnx.Linear(6, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.gate(x))


def told(**wrong: Callable[..., Any]) -> str:
    torch.manual_seed(0)
    net = Net()
    (finding,) = parity.check(net, parity.move(net, NNXNet(**wrong), X), X, steps=1).models[0].findings
    assert (finding.layer, finding.trap) == ("gate", None)
    return finding.text


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"end": lambda x, _: x / 1.189}, "PyTorch's value divided by 1.189"),
        ({"end": lambda x, _: x[..., ::-1]}, "the entries of axis 2 in another order (5, 4, 3, 2, 1, 0)"),
        ({"end": lambda x, before: before}, "there the port has what arrives at gate.first"),
        ({"atan": lambda x: x}, "PyTorch's value computed without `atan` (test_hypotheses.py:"),
        ({"atan": lambda x: jnp.arctan(jnp.arctan(x))}, "PyTorch's value computed with `atan` (test_hypotheses.py:"),
        ({"pow": lambda x: x**3}, "PyTorch's value computed with 3 instead of 2 in `pow` (test_hypotheses.py:"),
        (
            {"scale": lambda x: x * 0.731},
            "PyTorch's value computed with 0.731 instead of 1/4 in `mul` (test_hypotheses.py:",
        ),
        ({"mixed": lambda x: x * 1.3}, "PyTorch's value computed with what `matmul` (test_hypotheses.py:"),
        ({"atan": lambda x: x, "sub": lambda a, b: jnp.arctan(a - b)}, "computed with `sub` (test_hypotheses.py:"),
        ({"sub": lambda a, b: a + b}, "PyTorch's value computed with `add` instead of `sub` (test_hypotheses.py:"),
        ({"softmax": lambda x: jax.nn.softmax(x, -1)[:, ::-1]}, "gives reversed along axis 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_change_of_one_operation_is_said(wrong: dict[str, Callable[..., Any]], expected: str) -> None:
    assert expected in told(**wrong)


class Activated(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(6, 6), torch.nn.Mish(), torch.nn.Linear(6, 4))


class NNXActivated(nnx.Module):
    def __init__(self, activation: Callable[[jax.Array], jax.Array]) -> None:
        self.layers = nnx.List(nnx.Linear(6, width, rngs=nnx.Rngs(0)) for width in (6, 4))
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[1](self.activation(self.layers[0](x)))


@pytest.mark.parametrize("name", ["hardswish", "selu"])
def test_an_activation_for_another_one_is_said(name: str) -> None:
    """No row of the catalogue has the two."""
    torch.manual_seed(0)
    net, function = Activated(), {"hardswish": jax.nn.hard_swish, "selu": jax.nn.selu}[name]
    (finding,) = parity.check(net, parity.move(net, NNXActivated(function), X), X, steps=0).models[0].findings
    assert f"PyTorch's value computed with `{name}` instead of `mish`" in finding.text


def test_what_is_not_one_simple_change_is_said_to_be_none() -> None:
    assert "the port has" not in told(atan=lambda x: x + 0.1 * x**3)


def test_a_value_that_is_almost_a_multiple_is_none() -> None:
    """A change is told where it explains all numbers, and a single wrong one is enough to say nothing."""
    assert hypotheses.of_value(A, 3 * A) == "PyTorch's value times 3"
    wrong = 3 * A
    wrong[0, 0, 0] += 1e-6
    assert hypotheses.of_value(A, wrong) == ""


def test_few_numbers_prove_no_factor() -> None:
    """Any single number is any other one times something."""
    assert hypotheses.of_value(A[0, 0, :1], 1.7 * A[0, 0, :1]) == ""


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (A / 8**0.5, "PyTorch's value divided by √8"),
        (-A, "PyTorch's value times -1"),
        (A + 0.5, "PyTorch's value plus 1/2"),
        (0 * A, "zero everywhere"),
        (A[[1, 0, 2, 3]], "PyTorch's value with the entries of axis 0 in another order (1, 0, 2, 3)"),
        (A[:, :, [0, 0, 1, 2, 3]], "PyTorch's value with the entries of axis 2 in another order (0, 0, 1, 2, 3)"),
    ],
)
def test_values_as_a_whole(got: np.ndarray, expected: str) -> None:
    assert hypotheses.of_value(A, got) == expected


def test_another_shape() -> None:
    assert hypotheses.of_shape(A, A.transpose(1, 0, 2)) == "PyTorch's value with the axes 0 and 1 exchanged"
    assert hypotheses.of_shape(A, A.reshape(5, 4, 5)) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (0.125, "1/8"),
        (32**0.5, "√32"),
        (32**-0.5, "1/√32"),
        (1.189, "1.189"),
        (0.0, "0"),
        (-2.0, "-2"),
        (1e-5, "1e-05"),
    ],
)
def test_numbers_are_shown_as_readers_know_them(value: float, text: str) -> None:
    assert hypotheses.shown(value) == text


class Standardized(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, torch.nn.functional.layer_norm(self.weight, (6,), eps=1e-3), self.bias)


class NNXStandardized(nnx.Linear):
    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        kernel, bias = self.kernel[...], self.bias
        assert bias is not None
        centered = kernel - kernel.mean(0)
        return inputs @ (centered * jax.lax.rsqrt(jnp.square(centered).mean(0) + 2.5e-4)) + bias[...]


class Standard(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Standardized(6, 6), torch.nn.Sequential(Standardized(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.tanh(self.stem(x)))


class NNXStandard(nnx.Module):
    def __init__(self) -> None:
        self.stem, self.body = NNXStandardized(6, 6, rngs=nnx.Rngs(0)), NNXStandardized(6, 6, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.body(jnp.tanh(self.stem(x)))


def test_one_line_of_code_with_another_number_is_one_finding() -> None:
    torch.manual_seed(0)
    model = Standard()
    port = parity.move(model, NNXStandard(), X)
    (checked,) = parity.check(model, port, X, steps=0).models
    (finding,) = checked.findings
    assert "with 0.00025 instead of 0.001 in `layer_norm`" in finding.text
    assert (finding.layer, finding.also) == ("stem", ("body.0",))


class Padded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(torch.nn.functional.pad(self.conv(x), (1, 1, 1, 1), value=0.0), 3, 2)


class NNXPadded(nnx.Module):
    def __init__(self) -> None:
        self.conv = nnx.Conv(3, 4, (1, 1), rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(self.conv(x), (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


def test_padding_with_another_value_is_said_as_the_code_has_it() -> None:
    torch.manual_seed(0)
    model, images = Padded(), np.random.default_rng(0).standard_normal((2, 3, 6, 6))
    torch.nn.init.constant_(model.conv.bias, -4.0)  # pyright: ignore[reportArgumentType]
    port = parity.move(model, NNXPadded(), images)
    (checked,) = parity.check(model, port, images, steps=0).models
    (finding,) = checked.findings
    assert "with -inf instead of 0 in `pad`" in finding.text


class Wired(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6)
        self.first, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        for norm in (self.norm1, self.norm2):
            torch.nn.init.normal_(norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.first(self.norm1(x)))
        return self.last(self.norm2(x))


class NNXWired(nnx.Module):
    def __init__(self, wrong: str) -> None:
        self.wrong = wrong
        self.norm1, self.norm2 = (nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0)) for _ in range(2))
        self.first, self.last = (nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        n, bias = self.norm1(x), self.first.bias
        assert bias is not None
        match self.wrong:
            case "moved":
                y = self.first(jnp.tanh(n))
            case "bias":
                y = jnp.tanh(self.first(n) + bias[...])
            case _:
                y = jnp.tanh(self.first(n))
        x = (n if self.wrong == "residual" else x) + y
        return self.last((self.norm1 if self.wrong == "norm" else self.norm2)(x))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("wrong", "layer", "expected"),
    [
        ("residual", "(the network)", "adds what norm1 gives in place of what arrives at norm1"),
        ("norm", "(the network)", "with the parameters of norm1 in place of those of norm2"),
        ("moved", "(the network)", "too: first comes after it instead of before"),
        ("bias", "(the network)", "computed with first.bias added again to what first gives"),
    ],
)
def test_a_value_from_elsewhere_is_said(wrong: str, layer: str, expected: str) -> None:
    torch.manual_seed(0)
    net = Wired()
    port = NNXWired(wrong)
    nnx.update(port, nnx.state(parity.move(net, NNXWired(""), X), nnx.Param))
    first, *_ = parity.check(net, port, X, steps=1).models[0].findings
    assert (first.layer, first.trap) == (layer, None)
    assert expected in first.text


def test_positions_that_a_mask_hides_are_said() -> None:
    hidden = A.copy()
    hidden[1, 2:] = 0
    assert "zeros at more positions, the first (1, 2)" in hypotheses.of_value(A, hidden)
    assert "without the zeros at some positions, the first (1, 2)" in hypotheses.of_value(hidden, A)
    hidden[0, 0, 0] = 0
    assert "positions" not in hypotheses.of_value(A, hidden)


class Parts(torch.nn.Module):
    """Reads three parts of one layer, and takes the largest over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.head = torch.nn.Linear(6, 9), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.whole(x).split([1, 4, 4], -1)
        return self.head(torch.max(torch.atan(a) * torch.sin(math.pi * b) + c, 1)[0])


class NNXParts(nnx.Module):
    def __init__(self, order: str, factor: float, last: Callable[[jax.Array], jax.Array]) -> None:
        self.whole, self.head = (nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((6, 9), (4, 4)))
        self.order, self.factor, self.last = order, factor, last

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = dict(zip(self.order, jnp.split(self.whole(x), [1, 5], -1), strict=True))
        y = jnp.arctan(parts["a"]) * jnp.sin(self.factor * parts["b"]) + parts["c"]
        return self.head(self.last(y).max(1))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("order", "factor", "last", "expected"),
    [
        ("acb", math.pi, lambda y: y, "with the parts 1 and 2 of `split` (test_hypotheses.py:"),
        ("abc", math.pi, jax.nn.relu, "with `relu` after `max` (test_hypotheses.py:"),
        ("abc", 2 * math.pi, lambda y: y, "with 2π instead of π in `mul` (test_hypotheses.py:"),
    ],
    ids=["parts", "behind the largest", "pi"],
)
def test_a_change_of_one_part_of_what_a_call_gives_is_said(
    order: str, factor: float, last: Callable[[jax.Array], jax.Array], expected: str
) -> None:
    torch.manual_seed(0)
    model = Parts()
    right = parity.move(model, NNXParts("abc", math.pi, lambda y: y), X)
    wrong = NNXParts(order, factor, last)
    nnx.update(wrong, nnx.state(right))
    (finding,) = parity.check(model, wrong, X, steps=1).models[0].findings
    assert expected in finding.text
