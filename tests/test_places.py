"""Where a mistake between layers stands: the innermost module of the reference that computes what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.diagnosis import flow, forced_runs
from parity.numerics import layouts
from parity.numerics.quantities import Loss, Probe
from parity.pairing.blocks import blocks
from parity.pairing.matching import Pair, Pairing
from parity.running import losses
from parity.running.model_layers import ModelLayer
from parity.verdict import roles

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 5, 6))


class Norm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


class Mix(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.sin(self.a(x)) * torch.cos(self.b(x)))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.last = Norm(), Mix(), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.last(torch.sinh(self.mix(self.norm(x)))))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(2)])
        self.norm, self.head = Norm(), torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) * 3.0
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def bent(x: jax.Array) -> jax.Array:
    """No function that a known mistake has."""
    return x + 0.1 * x**3


class FlatNet(nnx.Module):
    """A port without modules around its layers: its norms are functions.

    Args:
        wrong: the stretches that are computed otherwise, by name and number of the block.
    """

    def __init__(self, wrong: tuple[str, ...] = ()) -> None:
        def linear(outputs: int = 6) -> nnx.Linear:
            return nnx.Linear(6, outputs, rngs=nnx.Rngs(0))

        self.first, self.head, self.wrong = linear(), linear(4), wrong
        self.a, self.b, self.c, self.last = (nnx.List([linear() for _ in range(2)]) for _ in range(4))
        self.scales = nnx.List([nnx.Param(jnp.ones(6)) for _ in range(3)])

    def sub(self, name: str, right: Callable[..., Any], *args: Any) -> Any:
        return bent(right(*args)) if name in self.wrong else right(*args)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.sub("scale", lambda x: x * 3.0, self.first(x))
        for i in range(2):
            h = norm(x, self.scales[i].get_value(), 1e-2 if f"norm{i}" in self.wrong else 1e-3)
            h = self.sub(f"product{i}", lambda a, b: jnp.sin(a) * jnp.cos(b), self.a[i](h), self.b[i](h))
            h = self.last[i](self.sub(f"sinh{i}", jnp.sinh, self.c[i](h)))
            x = x + self.sub(f"tanh{i}", jnp.tanh, h)
        return self.head(norm(x, self.scales[2].get_value(), 1e-3))


NAMES = {
    "first": "first",
    "head": "head",
    "norm.weight": "scales.2",
    **{f"blocks.{i}.mix.{name}": f"{name}.{i}" for i in range(2) for name in "abc"},
    **{f"blocks.{i}.last": f"last.{i}" for i in range(2)},
    **{f"blocks.{i}.norm.weight": f"scales.{i}" for i in range(2)},
}


def found(port: Any, names: dict[str, str] | None = None) -> parity.Report:
    torch.manual_seed(0)
    model = Net()
    return parity.check(model, parity.move(model, port, X, names=names), X, steps=1, names=names)


def layers(report: parity.Report) -> list[tuple[str, ...]]:
    return [(finding.layer, *finding.also) for finding in report.models[0].findings]


def test_a_port_without_modules_passes() -> None:
    assert found(FlatNet(), NAMES)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("norm0",), [("blocks.0.norm",)]),
        (("norm0", "norm1"), [("blocks.0.norm", "blocks.1.norm")]),
        (("product1",), [("blocks.1.mix",)]),
        (("sinh0",), [("blocks.0",)]),
        (("scale",), [("(the network)",)]),
        (("tanh0",), [("(the network)",)]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_the_place_is_the_innermost_module(wrong: tuple[str, ...], expected: list[tuple[str, ...]]) -> None:
    assert layers(found(FlatNet(wrong), NAMES)) == expected


def test_a_loss_that_no_known_mistake_explains_is_told_as_such() -> None:
    torch.manual_seed(0)
    model, loss = Net(), (lambda values: values.square().mean(), lambda values: (values**2).mean() * 1.25)
    port = parity.move(model, FlatNet(), X, names=NAMES)
    (finding,) = parity.check(model, port, X, steps=1, names=NAMES, loss=loss).models[0].findings
    assert (finding.layer, finding.trap, finding.size) == ("(the loss)", None, pytest.approx(0.25))


@pytest.mark.nightly
def test_several_causes_in_one_module_are_told_apart_the_largest_first() -> None:
    report = found(FlatNet(("product0", "sinh0", "product1")), NAMES)
    assert layers(report) == [("blocks.0.mix", "blocks.1.mix"), ("blocks.0",)]
    sizes = [finding.size for finding in report.models[0].findings]
    assert all(size is not None and 0 < size < 1 for size in sizes)


class NNXNorm(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        self.weight, self.epsilon = nnx.Param(jnp.ones(6)), epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return norm(x, self.weight.get_value(), self.epsilon)


class NNXMix(nnx.Module):
    def __init__(self) -> None:
        self.a, self.b, self.c = (nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(jnp.sin(self.a(x)) * jnp.cos(self.b(x)))


class NNXBlock(nnx.Module):
    def __init__(self, epsilon: float, order: str) -> None:
        self.norm, self.mix, self.last = NNXNorm(epsilon), NNXMix(), nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.order = order

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.order == "post":
            return self.norm(x + self.last(self.mix(x)))
        x = bent(x) if self.order == "shift" else x
        return x + jnp.tanh(self.last(jnp.sinh(self.mix(self.norm(x)))))


class NNXNet(nnx.Module):
    def __init__(self, epsilon: float = 1e-3, order: str = "") -> None:
        self.first, self.head = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.blocks = nnx.List([NNXBlock(epsilon, order) for _ in range(2)])
        self.norm = NNXNorm(epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x) * 3.0
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.nightly
def test_a_mistake_in_every_module_of_a_class_is_one_finding_there() -> None:
    """No place behind the norms is right, so that the reference alone does not tell a norm from what is before it."""
    assert found(NNXNet())
    report = found(NNXNet(epsilon=1e-2))
    assert layers(report) == [("blocks.0.norm", "blocks.1.norm", "norm")]
    assert "what this Norm makes of right values" in report.models[0].findings[0].text


@pytest.mark.nightly
def test_a_block_that_is_built_otherwise_is_one_finding() -> None:
    report = found(NNXNet(order="post"))
    assert layers(report) == [("blocks.0", "blocks.1")]
    assert "nothing that arrives at norm, mix, last is what it should be" in report.models[0].findings[0].text


@pytest.mark.nightly
def test_what_is_done_to_the_input_of_a_block_stands_in_the_block() -> None:
    """In each of the two; what comes behind the first is no reason of the second."""
    assert [layer for layer, *_ in layers(found(NNXNet(order="shift")))] == ["blocks.0", "blocks.1"]


class Cut(nnx.Module):
    """Its norms leave their scale to the block."""

    def __init__(self, wrong: tuple[str, ...] = ()) -> None:
        self.inner, self.wrong = NNXNet(), wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        net = self.inner
        x = net.first(x) * 3.0
        for i, block in enumerate(net.blocks):
            scale = block.norm.weight.get_value()
            h = block.mix(Unscaled.__call__(block.norm, x) * scale)  # pyright: ignore[reportArgumentType]
            x = x + (bent if f"tanh{i}" in self.wrong else jnp.tanh)(block.last(jnp.sinh(h)))
        return net.head(net.norm(x))


class Unscaled(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return norm(x, jnp.ones(6), 1e-3)


@pytest.mark.nightly
def test_modules_that_are_called_otherwise_are_no_findings() -> None:
    names = {"first": "inner.first", "head": "inner.head", "norm": "inner.norm", "blocks": "inner.blocks"}
    assert found(Cut(), names)
    assert {layer for layer, *_ in layers(found(Cut(("tanh1",)), names))} <= {"blocks.1", "(the network)"}


def traced(net: torch.nn.Module, names: tuple[str, ...]) -> flow.Flow:
    forced = [(side, name) for name in names for side in ("enter", "leave")]
    loss = Loss(lambda values: values.sum(), lambda _: lambda values: values.sum())
    return flow.of_reference(net.double(), Probe((X,), loss), names, forced, False)


class Views(torch.nn.Module):
    """Changes memory that another view shows, and hands on a value as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = torch.nn.Identity(), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[0] = torch.exp(y[1])
        part = y[1]
        part.mul_(3)
        return self.last(self.inner(y.contiguous()))


def test_operations_that_change_memory_are_in_the_slice() -> None:
    found = traced(Views(), ("last",))
    names = {found.operations[number].name for number in found.slice(("enter", "last"))}
    assert {"mul", "exp", "__setitem__", "mul_"} <= names
    assert found.module_around(found.slice(("enter", "last")), "last") == ""


def test_a_slice_ends_at_recorded_layers() -> None:
    found = traced(Net(), ("first", "blocks.0.mix.a", "blocks.0.mix.b", "blocks.0.mix.c"))
    inside = found.slice(("enter", "blocks.0.mix.c"))
    assert {found.operations[number].name for number in inside} == {"sin", "cos", "mul", flow.HANDED}
    assert found.module_around(inside, "blocks.0.mix.c") == "blocks.0.mix"
    assert found.module_around((), "first") == ""
    assert found.module_around(found.users(("leave", "first")), "") == ""


class Given(torch.nn.Module):
    """A part of a network that takes what the network is called with, too."""

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * given)

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x, x)


def test_what_the_network_is_called_with_is_no_place_of_a_mistake() -> None:
    found = traced(Given(), ("part.first", "part.last"))
    inside = found.slice(("enter", "part.last"))
    assert {found.operations[number].name for number in inside} == {"mul", flow.HANDED, flow.GIVEN}
    assert found.module_around(inside, "part.last") == "part"


def test_a_parameter_whose_gradient_is_stopped_is_named() -> None:
    got = {"start": np.zeros(3), "fc.weight": np.ones(3)}
    (finding,) = roles.stopped("nnx", ["start", "fc.weight", "lost"], got)
    assert (finding.layer, finding.trap) == ("start", None)
    assert finding.text.startswith("start: PyTorch trains it; the port's gradient is zero")


def test_a_shape_that_fits_no_layout_is_held_in_the_nearest() -> None:
    assert layouts.nearest((2, 8, 10), (2, 9, 8)) == "channels_last"
    assert layouts.nearest((2, 8, 10), (2, 8, 9)) == "same"
    assert layouts.nearest((2, 8, 6, 5), (2, 7, 6, 8)) == "channels_last"


def layer(name: str, kind: str = "linear") -> ModelLayer:
    return ModelLayer(name, kind)


def test_blocks_are_modules_with_the_same_tensors() -> None:
    names = {"enc.h.0.a": "h0.x", "enc.h.0.b": "h0.y", "enc.h.1.a": "h1.x", "enc.h.1.b": "out.y", "head.c": "out.z"}
    pairs = tuple(Pair(layer(torch), layer(flax), "") for torch, flax in names.items())
    called = {"enc", "enc.h.0", "enc.h.1", "head"}
    assert blocks(Pairing(pairs), called) == {"h0": "enc.h.0"}
    own = Pair(layer("n.weight", "own"), layer("m.n.scale", "own"), "")
    assert blocks(Pairing((own,)), {"n"}) == {"m.n": "n"}


class Joined(torch.nn.Module):
    """A block: its second layer gets the sum, and the sum goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x + self.first(x)
        return h + self.second(h)


class JoinedNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.block, self.end = torch.nn.Linear(6, 6), Joined(), torch.nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.block(self.start(x)))


class JoinedPort(nnx.Module):
    """It gives the second layer what came into the block."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.start, self.end = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.first, self.second = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.start(x)
        h = x + self.first(x)
        return self.end(h + self.second(x))


def test_a_right_value_in_a_wrong_place_stands_in_the_module_that_passes_it() -> None:
    torch.manual_seed(0)
    model, names = JoinedNet(), {"block.first": "first", "block.second": "second"}
    port = parity.move(model, JoinedPort(), X, names=names)
    (finding,) = parity.check(model, port, X, steps=0, names=names).models[0].findings
    assert (finding.layer, finding.trap) == ("block", "sum-lacks-second")


def test_a_layer_that_gives_an_array_twice_has_the_gradient_of_the_first() -> None:
    """As a block of a U-Net gives its output, and again among those that are skipped on: Flax has two arrays there."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(X.shape[-1], 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            y = self.fc(x)
            return y, (y,)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, (skipped,) = self.block(x)
            return 2 * y + 3 * skipped

    fed = Probe((X,), losses.projection(0))
    gradients = forced_runs.of_reference(Net().double(), fed, {"block", "block.fc"}, train=True).output_gradients
    assert np.abs(gradients["block.fc"]).max() > 0.1
    np.testing.assert_allclose(gradients["block"] / 2, gradients["block.fc"] / 5, rtol=1e-14)
