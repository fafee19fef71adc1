"""Names that mean another layer in the other framework: the weights are moved rightly, or both names are told."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from parity.pairing import trials
from ports import UserError
from ports.weights import WeightsError

pytestmark = pytest.mark.usefixtures("quick")

SIZE = 6
X = np.random.default_rng(1).standard_normal((3, SIZE)).astype(np.float32)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """No two tensors alike."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return model


def started(module: Any, *inputs: Any) -> Any:
    return module, module.init(jax.random.key(0), *inputs)


def difference(model: torch.nn.Module, port: Any, *inputs: Any, **options: Any) -> float:
    """Move the weights and return how far the worst output is from PyTorch's."""
    moved = parity.move(model, port, *inputs, **options)
    expected = model(*map(torch.tensor, inputs))
    got = moved[0].apply(moved[1], *inputs) if isinstance(moved, tuple) else moved(*inputs)
    if isinstance(expected, torch.Tensor):
        expected, got = (expected,), (got,)
    return max(float(np.abs(np.asarray(b) - a.detach().numpy()).max()) for a, b in zip(expected, got, strict=True))


class TorchChain(torch.nn.Module):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, torch.nn.Linear(SIZE, SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


class Chain(nnx.Module):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        for i, name in enumerate(names):
            setattr(self, name, nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(i)))

    def __call__(self, x: Any) -> Any:
        for name in self.names:
            x = jnp.tanh(getattr(self, name)(x))
        return x


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (("fc1", "fc2", "fc3"), ("fc0", "fc1", "fc2")),
        (("fc1", "fc3", "fc5"), ("fc1", "fc2", "fc3")),
        (("block9", "block10", "block11"), ("block0", "block1", "block2")),
        (("first", "second", "third"), ("first", "other", "third")),
        (("fc#1", "fc#2"), ("fc#1", "fc#2")),
        (("fc#1", "fc#2"), ("other#1", "other#2")),
        (("fc@1", "fc@2"), ("other@1", "other@2")),
        (("a#2", "a"), ("x", "y")),
    ],
    ids=" ".join,
)
def test_numbers_and_odd_names(mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """A number is another one in the other model; `#` and `@` are parts of names."""
    assert difference(randomised(TorchChain(mine)), Chain(theirs), X) < 1e-5


def test_places_in_a_sequential_are_no_numbers_of_layers() -> None:
    """0, 2, 4 in PyTorch, where the activations are modules; 0, 1, 2 in a list."""

    class List(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(i)) for i in range(3)])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return x

    parts = [m for _ in range(3) for m in (torch.nn.Linear(SIZE, SIZE), torch.nn.Tanh())]
    model = torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(*parts)))
    assert difference(randomised(model), List(), X) < 1e-5


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (("first", "second"), ("second", "third")),
        (("first", "second", "third"), ("second", "third", "fourth")),
        (("fc1", "fc2", "fc3"), ("stem", "fc1", "fc2")),
    ],
    ids=" ".join,
)
def test_a_name_that_another_layer_has_is_told(mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Both ways are offered: the models agree under the one, the names under the other."""
    model = randomised(TorchChain(mine))
    with pytest.raises(UserError, match="the models agree only if these are exchanged"):
        difference(model, Chain(theirs), X)
    assert difference(model, Chain(theirs), X, names=dict(zip(mine, theirs, strict=True))) < 1e-5


def test_equal_names_win_in_a_port_that_uses_them_otherwise() -> None:
    """Layers called in the wrong order are a mistake of the port, which the check tells; so are exchanged gates."""
    model, port = randomised(TorchChain(("up", "down"))), Chain(("down", "up"))
    moved = parity.move(model, port, X)
    assert np.array_equal(np.asarray(moved.up.kernel[...]), model.get_parameter("up.weight").detach().numpy().T)
    assert not parity.check(model, moved, X, steps=1)


class TorchTwo(torch.nn.Module):
    """Two chains on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = TorchChain(("first", "last")), TorchChain(("first", "last"))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x)


class Two(linen.Module):
    """The second chain is called first; or both in turn."""

    calls: str
    mistake: float = 1.0

    @linen.compact
    def __call__(self, x: Any) -> tuple[Any, Any]:
        u = v = x * self.mistake
        for tower in self.calls:
            if tower == "a":
                u = jnp.tanh(linen.Dense(SIZE)(u))
            else:
                v = jnp.tanh(linen.Dense(SIZE)(v))
        return u, v


@pytest.mark.parametrize("calls", ["aabb", "bbaa", "abab", "baba"])
def test_towers_are_exchanged_as_a_whole(calls: str) -> None:
    assert difference(randomised(TorchTwo()), started(Two(calls), X), X) < 1e-5


@pytest.mark.parametrize("calls", ["aabb", "bbaa", "abab", "baba"])
def test_towers_behind_a_mistake_are_moved_rightly_or_refused(calls: str) -> None:
    model, port = randomised(TorchTwo()), started(Two(calls, 1.01), X)
    if calls in ("aabb", "bbaa"):
        assert 1e-5 < difference(model, port, X) < 0.1
    else:
        with pytest.raises(UserError, match="computing does not decide it"):
            difference(model, port, X)


class TorchConditioned(torch.nn.Module):
    def __init__(self, between: int) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(SIZE, between), torch.nn.Linear(between, SIZE)
        self.scale = torch.nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.down(self.up(x)) * (1 + self.scale(c)))


class TorchConditionedTwice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = TorchConditioned(SIZE + 1), TorchConditioned(SIZE + 2)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x, c), c)


class Conditioned(linen.Module):
    """It lacks the one that PyTorch adds to the scale."""

    between: int

    @linen.compact
    def __call__(self, x: Any, c: Any) -> Any:
        y = linen.Dense(SIZE)(linen.Dense(self.between)(x))
        return x + jnp.tanh(y * linen.Dense(SIZE)(c))


class ConditionedTwice(linen.Module):
    @linen.compact
    def __call__(self, x: Any, c: Any) -> Any:
        x = Conditioned(SIZE + 1)(x, c)
        return Conditioned(SIZE + 2)(x, c)


def test_blocks_tell_their_layers_behind_a_mistake() -> None:
    """Both scales get the same input, and nothing behind them agrees: only the blocks tell them apart."""
    model: Any = randomised(TorchConditionedTwice())
    c = X[::-1].copy()
    port = started(ConditionedTwice(), X, c)
    params = parity.move(model, port, X, c)[1]["params"]
    for block, ours in (("Conditioned_0", model.a), ("Conditioned_1", model.b)):
        assert np.array_equal(params[block]["Dense_2"]["bias"], ours.scale.bias.detach().numpy())


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v = (torch.nn.Linear(SIZE, SIZE) for _ in range(3))
        self.norm = torch.nn.LayerNorm(SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.fc_q(x), self.fc_k(x), self.fc_v(x)
        return self.norm(q + (q @ k.T / SIZE).softmax(-1) @ v)


class TorchAttentionTwice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mab0, self.mab1 = TorchAttention(), TorchAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mab1(self.mab0(x))


class Attention(linen.Module):
    """It lacks the query behind the attention."""

    parts: str

    @linen.compact
    def __call__(self, x: Any) -> Any:
        q, k, v = (linen.Dense(SIZE, name=part)(x) for part in self.parts)
        return linen.LayerNorm(epsilon=1e-5)(linen.softmax(q @ k.T / SIZE) @ v)


class AttentionTwice(linen.Module):
    parts: str

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return Attention(self.parts, name="isab0")(Attention(self.parts, name="isab1")(x))


def test_parts_of_one_module_are_told_by_their_names_behind_a_mistake() -> None:
    model: Any = randomised(TorchAttentionTwice())
    params = parity.move(model, started(AttentionTwice("qkv"), X), X)[1]["params"]
    for block, ours in (("isab1", model.mab0), ("isab0", model.mab1)):
        for part in "qkv":
            weight = ours.get_submodule(f"fc_{part}").weight.detach().numpy()
            assert np.array_equal(params[block][part]["kernel"], weight.T)
    with pytest.raises(UserError, match="computing does not decide it"):
        parity.move(model, started(AttentionTwice("abc"), X), X)


class TorchMirrored(torch.nn.Module):
    """Convolutions of one shape, each behind a mirrored border, and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(2, 2, 3) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = torch.tanh(conv(torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect")))
        return x


class Mirrored(nnx.Module):
    """Its border is another one, so that only the inner pixels agree, and its list has another order."""

    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Conv(2, 2, (3, 3), padding="VALID", rngs=nnx.Rngs(0)) for _ in range(3)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.layers[2], self.layers[0], self.layers[1]):
            x = jnp.tanh(conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "symmetric")))
        return x


def test_three_layers_are_told_by_the_part_that_agrees_behind_a_mistake() -> None:
    """Two orders of three agree at one layer each, so that an order is compared where it differs from another."""
    model: Any = randomised(TorchMirrored())
    image = np.random.default_rng(2).standard_normal((2, 2, 12, 12)).astype(np.float32)
    port = parity.move(model, Mirrored(), image)
    for ours, theirs in zip(model.convs, (2, 0, 1), strict=True):
        assert np.array_equal(port.layers[theirs].bias[...], ours.bias.detach().numpy())


class TorchBlock(torch.nn.Module):
    """Its factor stands beside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gamma = torch.nn.Linear(SIZE, SIZE), torch.nn.Parameter(torch.ones(SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * torch.tanh(self.fc(x))


class Factor(nnx.Module):
    def __init__(self) -> None:
        self.gamma = nnx.Param(jnp.ones(SIZE))

    def __call__(self, x: Any) -> Any:
        return x * self.gamma[...]


class Scaled(nnx.Module):
    """The factors are modules of their own."""

    def __init__(self, count: int, order: Sequence[int]) -> None:
        self.layers = nnx.List([nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(i)) for i in range(count)])
        self.factors = nnx.List([Factor() for _ in range(count)])
        self.order = tuple(order)

    def __call__(self, x: Any) -> Any:
        for layer, i in zip(self.layers, self.order, strict=True):
            x = x + self.factors[i](jnp.tanh(layer(x)))
        return x


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_parameters_of_modules_that_are_called_elsewhere(order: tuple[int, ...]) -> None:
    model = torch.nn.Sequential(*(TorchBlock() for _ in order))
    assert difference(randomised(model), Scaled(len(order), order), X) < 1e-5


class TorchRecurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = torch.nn.GRU(SIZE, SIZE, batch_first=True), torch.nn.Linear(SIZE, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class Recurrent(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(2)(linen.RNN(linen.GRUCell(SIZE))(x))


class NnxRecurrent(nnx.Module):
    def __init__(self) -> None:
        self.rnn: Any = nnx.RNN(nnx.GRUCell(SIZE, SIZE, rngs=nnx.Rngs(0)))
        self.head = nnx.Linear(SIZE, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        return self.head(self.rnn(x))


def test_the_second_bias_of_a_gru_is_moved_or_refused() -> None:
    """Linen's cell has the part of it that the reset gate multiplies, NNX's has none."""
    x = np.random.default_rng(0).standard_normal((2, 4, SIZE)).astype(np.float32)
    model = randomised(TorchRecurrent())
    assert difference(model, started(Recurrent(), x), x) < 1e-5
    with pytest.raises(WeightsError, match="no bias at the hidden state"):
        difference(model, NnxRecurrent(), x)
    with torch.no_grad():
        model.get_parameter("rnn.bias_hh_l0")[2 * SIZE :] = 0
    assert difference(model, NnxRecurrent(), x) < 1e-5


class TorchTwice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.a(x)) + torch.tanh(self.b(y))


class Twice(linen.Module):
    @linen.compact
    def __call__(self, x: Any, y: Any) -> Any:
        b = linen.Dense(SIZE)(y)
        return jnp.tanh(linen.Dense(SIZE)(x)) + jnp.tanh(b)


def test_layers_that_these_inputs_do_not_tell_apart_are_refused() -> None:
    """The same array twice: the models agree whichever is which, and would not on other inputs."""
    model = randomised(TorchTwice())
    assert difference(model, started(Twice(), X, -X), X, -X) < 1e-5
    with pytest.raises(UserError, match="computing does not decide it"):
        difference(model, started(Twice(), X, X), X, X)


def test_layers_that_neither_model_calls_are_refused() -> None:
    """A head for training alone, under another name: it would be left as it was without a word."""
    port: Any = Chain(("a", "b"))
    model = randomised(TorchChain(("a", "b")))
    model.auxiliary, model.other = torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, SIZE)
    assert difference(model, port, X) < 1e-5
    port.x, port.y = nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(8)), nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(9))
    with pytest.raises(UserError, match=r"PyTorch's auxiliary .* candidates x .*, y "):
        difference(model, port, X)
    moved = parity.move(model, port, X, names={"auxiliary": "y"})
    assert np.array_equal(np.asarray(moved.y.bias[...]), model.auxiliary.bias.detach().numpy())
    assert np.array_equal(np.asarray(moved.x.bias[...]), model.other.bias.detach().numpy())


def test_negative_zeros_are_moved() -> None:
    model = randomised(TorchChain(("a", "b")))
    with torch.no_grad():
        model.get_parameter("a.bias").copy_(torch.tensor([-0.0, 0.0] * (SIZE // 2)))
    moved = parity.move(model, Chain(("a", "b")), X)
    assert np.signbit(np.asarray(moved.a.bias[...])).tolist() == [True, False] * (SIZE // 2)


@pytest.mark.parametrize("planted", ["nothing follows", "nothing is told apart"])
def test_without_the_parts_of_the_proof_weights_would_be_wrong(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistakes that the proof is there for, planted."""
    if planted == "nothing follows":
        monkeypatch.setattr(trials._Following, "_exchange", lambda *_: None)
        monkeypatch.setattr("parity.pairing.ordering._by_parts", lambda pairing, _: pairing)
        assert difference(randomised(TorchTwo()), started(Two("bbaa"), X), X) > 0.1
    else:
        monkeypatch.setattr(trials.Trial, "exchangeable", lambda *_: None)
        wrong = [difference(randomised(TorchTwice()), started(Twice(), X, X), X, X)]
        port = parity.move(randomised(TorchTwice()), started(Twice(), X, X), X, X)
        got, expected = port[0].apply(port[1], X, -X), randomised(TorchTwice())(*map(torch.tensor, (X, -X)))
        assert wrong[0] < 1e-5 < float(np.abs(np.asarray(got) - expected.detach().numpy()).max())


def test_names_that_number_in_several_places() -> None:
    """The layers of each block are counted anew, and `1.1` is not `11`."""

    class TorchBlocks(TorchChain):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.names = [f"blocks.{i}.{j}" for i, j in itertools.product((0, 1, 11), (0, 2))]
            self.blocks = torch.nn.ModuleDict()
            for i in ("0", "1", "11"):
                self.blocks[i] = torch.nn.ModuleDict({j: torch.nn.Linear(SIZE, SIZE) for j in ("0", "2")})

    names = [f"blocks_{i}_{j}" for i, j in itertools.product((0, 1, 11), (0, 1))]
    assert difference(randomised(TorchBlocks()), Chain(names), X) < 1e-5
