"""Layers that a Flax model keeps as one layer with an axis more, and layers inside `remat`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import parity
from ports import weights
from ports.weights.live.stacks import Held, Level, copies, levels

WIDTH, LAYERS = 6, 3
pytestmark = pytest.mark.usefixtures("quick")

INPUTS = np.random.default_rng(0).standard_normal((3, 4, WIDTH))
X = INPUTS.astype(np.float32)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def reference() -> Stack:
    torch.manual_seed(0)
    return Stack().eval()


class LinenBlock(linen.Module):
    epsilon: float
    wrong: int = -1

    @linen.compact
    def __call__(self, x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        h = linen.LayerNorm(epsilon=self.epsilon, name="norm")(x)
        h = linen.tanh(linen.Dense(2 * WIDTH, name="fc1")(h))
        h = linen.Dense(WIDTH, name="fc2")(h)
        return x + jnp.where(number == self.wrong, 1.01 * h, h), None


class LinenStack(linen.Module):
    epsilon: float = 1e-6
    remat: bool = False
    wrong: int = -1

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = linen.remat(LinenBlock) if self.remat else LinenBlock
        stack = linen.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = stack(self.epsilon, self.wrong, name="layers")(x, jnp.arange(LAYERS))
        return linen.Dense(2, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.fc2(jnp.tanh(self.fc1(self.norm(x))))


class NnxStack(nnx.Module):
    def __init__(self, epsilon: float = 1e-6, remat: bool = False) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs: nnx.Rngs) -> NnxBlock:
            return NnxBlock(epsilon, rngs)

        self.layers, self.head = make(nnx.Rngs(0)), nnx.Linear(WIDTH, 2, rngs=nnx.Rngs(1))
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def block(layer: NnxBlock, x: jax.Array) -> jax.Array:
            return layer(x)

        run = nnx.scan(nnx.remat(block) if self.remat else block, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.head(run(self.layers, x))


def in_linen(**settings: Any) -> tuple[LinenStack, Any]:
    module = LinenStack(**settings)
    return module, module.init(jax.random.key(0), X)


def checked(port: str, **settings: Any) -> parity.Report:
    ours = reference()
    return parity.check(ours, parity.move(ours, STACKS[port](**settings), X), INPUTS, steps=1)


STACKS = {"linen": in_linen, "nnx": NnxStack}


@pytest.mark.sample(1)
@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
@pytest.mark.parametrize("port", STACKS)
def test_a_stack_equals_a_list_of_layers(port: str, remat: bool) -> None:
    report = checked(port, remat=remat)
    assert report, str(report)
    assert "layers.2.fc2 = layers.2.fc2  (equal names)" in report.models[0].pairing


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", STACKS)
@pytest.mark.nightly
def test_a_mistake_of_all_layers_is_found_in_each(port: str) -> None:
    findings = checked(port, epsilon=1e-5).models[0].findings
    told = " ".join(map(str, findings))
    assert "layers.0.norm" in told
    assert "epsilon" in told


def test_a_mistake_of_one_layer_is_found_there() -> None:
    (finding,) = checked("linen", wrong=1).models[0].findings
    assert finding.layer == "layers.1"
    assert "between layers.1.fc2 and the end of layers.1" in finding.text


@pytest.mark.parametrize("port", STACKS)
def test_weights_move_into_a_stack_and_back(port: str) -> None:
    ours, stack = reference(), STACKS[port]()
    moved = parity.move(ours, stack, X)
    if port == "linen":
        module, variables = moved
        got = module.apply(variables, X)
        kernel = np.asarray(variables["params"]["layers"]["fc1"]["kernel"])
    else:
        got, kernel = stack(X), np.asarray(stack.layers.fc1.kernel.get_value())
        assert {n: x.tobytes() for n, x in weights.read(stack).items()} == {
            n: x.tobytes() for n, x in weights.read(ours).items()
        }
    assert np.array_equal(kernel[2], weights.read(ours)["layers.2.fc1.weight"].T)
    np.testing.assert_allclose(got, ours(torch.tensor(X)).detach(), atol=1e-5)


def test_a_stack_begins_at_the_outermost_module_that_is_stacked() -> None:
    found = levels(
        [
            Held(("layers", "norm"), (3, 6), 1),
            Held(("layers", "fc"), (3, 6, 8), 2),
            Held(("layers",), (3,), None),
            Held(("head",), (6, 2), 2),
        ]
    )
    assert found == [(Level(1, 0, 3),)] * 3 + [()]


def test_a_stack_in_a_stack_has_two_numbers() -> None:
    (stack,) = levels([Held(("groups", "layers"), (2, 3, 6), 1)])
    names = [".".join(path) for path, _, _ in copies(("groups", "layers"), stack)]
    assert len({*names}) == len(names) == 6


def test_layers_of_other_lengths_are_no_stack() -> None:
    assert levels([Held(("a", "fc"), (3, 6, 8), 2), Held(("a", "norm"), (4, 6), 1)]) == [
        (Level(2, 0, 3),),
        (Level(2, 0, 4),),
    ]


class Dropping(nnx.Module):
    """A layer of a stack with a dropout, and so with keys, of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc, self.drop = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.drop(jnp.tanh(self.fc(x)))


class DroppingStack(nnx.Module):
    def __init__(self) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def made(rngs: nnx.Rngs) -> Dropping:
            return Dropping(rngs)

        self.layers = made(nnx.Rngs(0, dropout=1))

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x: jax.Array, layer: Dropping) -> jax.Array:
            return layer(x)

        return through(x, self.layers)


class DroppingList(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.drop = nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + self.drop(torch.tanh(layer(x)))
        return x


@pytest.mark.sample(1)
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_a_stack_may_hold_keys_of_random_numbers(rate: float) -> None:
    model = DroppingList(rate)
    report = parity.check(model, parity.move(model, DroppingStack(), X), X, steps=1)
    assert report.exit_code == (0 if rate == 0.25 else 1)


class JittedStack(nnx.Module):
    """Runs its layers in methods under `jit`, whose Python runs once for many calls."""

    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.function = jax.nn.sigmoid if wrong else jnp.tanh

    @nnx.jit
    def inner(self, x: jax.Array) -> jax.Array:
        return self.second(self.function(self.first(x)))

    def __call__(self, x: jax.Array) -> jax.Array:
        inner: Any = self.inner  # pyright takes a method under jit for a function
        return x + inner(x)


class Unjitted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def test_layers_under_jit_are_seen_in_every_check() -> None:
    """Both layers are of one shape, so that only the order of their calls tells which is which."""
    torch.manual_seed(0)
    model, port = Unjitted(), JittedStack()
    port(jnp.asarray(X))
    moved = parity.move(model, port, X)
    for fresh in (False, True):
        report = parity.check(model, parity.move(model, port, X) if fresh else moved, X, steps=1)
        assert report, report.failure()
        assert [p.layer for p in report.models[0].profile["nnx"]["layer.eval"]] == ["up", "down"]


def test_a_mistake_under_jit_is_found_between_its_layers() -> None:
    torch.manual_seed(0)
    model, wrong = Unjitted(), JittedStack(wrong=True)
    nnx.update(wrong, nnx.state(parity.move(model, JittedStack(), X)))
    report = parity.check(model, wrong, X, steps=1)
    (finding,) = report.models[0].findings
    assert "between up and down" in finding.text
