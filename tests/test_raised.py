"""What a user's own code raises: one line with the exception, the layer and its shapes, the file and line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from parity.commands.cli import main
from parity.running.raised import raising
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

HERE = Path(__file__).name
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def nothing(x: Any, training: bool = False) -> Any:
    return x


def bad_shape(x: Any, training: bool = False) -> Any:
    return x @ x


def bad_key(x: Any, training: bool = False) -> Any:
    return {"a": x}["b"]


def bad_in_training(x: Any, training: bool = False) -> Any:
    if training:
        raise ArithmeticError("planted\nwith a second line")
    return x


class Inner(torch.nn.Module):
    def __init__(self, mistake: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.mistake = torch.nn.Linear(4, 4), mistake

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)[:2]
        return self.mistake(x, self.training)


class Model(torch.nn.Module):
    def __init__(self, mistake: Callable[..., Any] = nothing) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Inner(nothing), Inner(mistake)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class NNXInner(nnx.Module):
    def __init__(self, mistake: Callable[..., Any]) -> None:
        self.linear, self.mistake = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), mistake

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = self.linear(x)[:2]
        return self.mistake(x, training)


class NNXModel(nnx.Module):
    def __init__(self, mistake: Callable[..., Any] = nothing) -> None:
        self.blocks = nnx.List([NNXInner(nothing), NNXInner(mistake)])

    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        for block in self.blocks:
            x = block(x, training)
        return x


class LinenInner(flax.linen.Module):
    mistake: Callable[..., Any]

    @flax.linen.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = flax.linen.Dense(4, name="linear")(x)[:2]
        return self.mistake(x, training)


class LinenModel(flax.linen.Module):
    mistake: Callable[..., Any] = nothing

    @flax.linen.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        x = LinenInner(nothing, name="blocks_0")(x, training)
        return LinenInner(self.mistake, name="blocks_1")(x, training)


def linen_model(mistake: Callable[..., Any] = nothing) -> tuple[Any, Any]:
    variables = LinenModel().init(jax.random.key(0), jnp.array(X))
    return LinenModel(mistake), variables


def said_of(*pair: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        parity.check(*pair, X, steps=1, **options)
    return str(caught.value)


def line_of(function: Callable[..., Any], behind: int = 1) -> str:
    return f"{HERE}:{inspect.getsourcelines(function)[1] + behind}"


LAYERS = {
    "torch": ("the PyTorch model", "in blocks.1 (Inner), called with float64 (2, 4)"),
    "nnx": ("the Flax model", "in blocks.1 (NNXInner), called with float64 (2, 4)"),
    "linen": ("the Flax model", "in blocks_1 (LinenInner), called with float64 (2, 4)"),
}
PORTS = {"nnx": NNXModel, "linen": linen_model}


def broken(side: str, mistake: Callable[..., Any]) -> tuple[Any, Any]:
    if side == "torch":
        return Model(mistake), NNXModel()
    torch.manual_seed(0)
    return Model(), PORTS[side](mistake)


@pytest.mark.parametrize("side", LAYERS)
@pytest.mark.parametrize("mistake", [bad_shape, bad_key])
def test_the_layer_its_shapes_and_the_line_are_told(side: str, mistake: Callable[..., Any]) -> None:
    said, (what, where) = said_of(*broken(side, mistake)), LAYERS[side]
    assert said.startswith(f"{what} raises {'KeyError: ' if mistake is bad_key else ''}")
    assert f"; {where}; at tests/{line_of(mistake)} in {mistake.__name__}; expected it to run" in said
    assert "\n" not in said


@pytest.mark.parametrize("side", LAYERS)
def test_what_is_raised_in_training_alone_is_told(side: str) -> None:
    model, port = broken(side, bad_in_training)
    said = said_of(model, parity.move(model, port, X))
    what, where = LAYERS[side]
    where = where.replace("called with", "its arguments are then") if side == "nnx" else where
    assert said.startswith(f"{what} raises ArithmeticError: planted; {where}"), said
    assert line_of(bad_in_training, 2) in said


def test_a_layer_of_the_library_is_told_with_the_line_that_calls_it() -> None:
    class Wrong(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first: Any = self.blocks[0]
            return first.linear(x[:, 1:])

    said = said_of(Wrong(), NNXModel())
    assert "in blocks.0.linear (Linear), called with float64 (3, 3)" in said
    assert line_of(Wrong.forward, 2) in said


def test_arguments_that_the_code_changed_are_not_called_what_it_got() -> None:
    class Wrong(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            x = x[1:, 1:]
            return x @ x

    said = said_of(torch.nn.Linear(4, 4), Wrong())
    assert "in Wrong, its arguments are then float64 (2, 3)" in said


def wrong_loss(values: Any) -> Any:
    return values[:, 9]


def right_loss(values: Any) -> Any:
    return (values**2).sum()


class WrongTransform:
    def __init__(self, at: str) -> None:
        self.at, self.sgd = at, optax.sgd(0.1)

    def init(self, params: Any) -> Any:
        return self._run("init", params)

    def update(self, *args: Any) -> Any:
        return self._run("update", *args)

    def _run(self, name: str, *args: Any) -> Any:
        if name == self.at:
            raise LookupError("planted")
        return getattr(self.sgd, name)(*args)


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.1)


def broken_optimizer(params: Any) -> Any:
    return torch.optim.SGD(params, lr=-1.0)


@pytest.mark.parametrize(
    ("options", "what", "said"),
    [
        ({"loss": (wrong_loss, right_loss)}, "the loss in PyTorch raises IndexError", "called with float64 (2, 4)"),
        ({"optimizer": broken_optimizer, "tx": optax.sgd(0.1)}, "the PyTorch optimizer raises ValueError", "in broken"),
        (
            {"optimizer": sgd, "tx": WrongTransform("init")},
            "the optax transform raises LookupError: planted",
            "in _run; expected an update",
        ),
        ({"optimizer": sgd, "tx": WrongTransform("update")}, "the optax transform raises LookupError", "in _run"),
    ],
    ids=["loss", "optimizer", "init", "update"],
)
def test_losses_and_optimizers_are_told_too(options: dict[str, Any], what: str, said: str) -> None:
    torch.manual_seed(0)
    model = Model()
    found = said_of(model, parity.move(model, NNXModel(), X), **options)
    assert found.startswith(what), found
    assert said in found
    assert HERE in found


def test_the_loss_in_flax_is_told() -> None:
    def loss(values: jax.Array) -> jax.Array:
        return values @ values

    torch.manual_seed(0)
    model = Model()
    found = said_of(model, parity.move(model, NNXModel(), X), loss=(right_loss, loss))
    assert found.startswith("the loss in Flax raises TypeError"), found
    assert f"called with float64 (2, 4); at tests/{line_of(loss)} in loss" in found


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ArithmeticError("planted")


def test_a_backward_pass_is_told() -> None:
    class Twice(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return Doubled.apply(super().forward(input))

    model = Twice(4, 4)
    found = said_of(model, nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    assert found.startswith("the backward pass of the PyTorch model raises ArithmeticError: planted"), found
    assert line_of(Doubled.backward, 2) in found


def test_code_that_needs_numbers_under_jit_is_told_what_to_do() -> None:
    def counted(x: jax.Array, training: bool) -> jax.Array:
        return x * (1 if float(x.sum()) > 0 else 2)

    with pytest.raises(UserError, match=r"ConcretizationTypeError.*runs ports under jax\.jit.*jnp\.where"):
        parity.check(Model(), NNXModel(counted), X)


def test_memory_that_is_full_is_no_mistake_of_a_model() -> None:
    for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")):
        with pytest.raises(type(error)), raising():
            raise error


CODE = """
import numpy as np
import torch
from flax import nnx


class Net(torch.nn.Linear):
    def forward(self, x):
        raise RuntimeError("planted")


def pair():
    return Net(4, 2), nnx.Linear(4, 2, rngs=nnx.Rngs(0)), np.ones((3, 4))


def broken():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "pair",
            "PyTorch model raises RuntimeError: planted; in Net, called with float64 (3, 4); at own.py:9 in forward",
        ),
        ("broken", "own.py:broken: ZeroDivisionError: division by zero; at own.py:17 in broken"),
    ],
)
def test_the_command_ends_with_one_line_and_exit_code_2(
    function: str, said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    assert main(["check", f"own.py:{function}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
