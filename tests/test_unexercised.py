"""What the inputs of a check do not reach: layers, arguments of the call, and branches of the models' code."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


class Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.aux = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, scale: Any = None, auxiliary: bool = False) -> torch.Tensor:
        y = torch.tanh(self.up(x))
        if scale is not None:
            y = y * scale
        if self.training:
            y = y * 2
        if auxiliary:
            if scale is None:  # is not reached
                y = -y
            return self.aux(y)
        return self.down(y)


class NNX(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down, self.aux = (nnx.Linear(*sizes, rngs=rngs) for sizes in ((4, 8), (8, 2), (8, 3)))

    def __call__(self, x: jax.Array, scale: Any = None, train: bool = False) -> jax.Array:
        y = jax.numpy.tanh(self.up(x))
        if scale is not None:
            y = y * scale
        for _ in range(1 if train else 0):
            y = y * 2
        return self.down(y)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, scale: Any = None, train: bool = False) -> jax.Array:
        y = jax.numpy.tanh(linen.Dense(8, name="up")(x))
        if scale is not None:
            y = y * scale
        y = y * 2 if train else y
        return linen.Dense(2, name="down")(y)


def linen_pair() -> tuple[Any, Any]:
    torch_model = Torch()
    del torch_model.aux
    module: Any = Linen()
    return torch_model, (module, module.init(jax.random.key(0), X))


def told(torch_model: Any, flax_model: Any, **options: Any) -> tuple[str, ...]:
    report = parity.check(torch_model, parity.move(torch_model, flax_model, X), X, steps=1, **options)
    assert report, str(report)
    for line in report.models[0].unexercised:
        assert f"not exercised: {line}" in str(report)
    return report.models[0].unexercised


ARGUMENTS = (
    "PyTorch: arguments left at their defaults: scale, auxiliary",
    "Flax: arguments left at their defaults: scale",
)


def test_layers_and_arguments_are_listed() -> None:
    assert told(Torch(), NNX()) == ("PyTorch: layers that are never used: aux", *ARGUMENTS)
    assert told(*linen_pair()) == ARGUMENTS


def test_what_is_reached_is_not_listed() -> None:
    assert told(torch.nn.Linear(4, 2), nnx.Linear(4, 2, rngs=nnx.Rngs(0))) == ()
    scaled = told(Torch(), NNX(), keywords={"scale": np.full(8, 2.0)})
    assert scaled[1:] == ("PyTorch: arguments left at their defaults: auxiliary",)


def code(line: str) -> str:
    """A line of a report without the number of the line of code."""
    file, _, rest = line.partition(":")
    return f"{file}{rest[rest.index(':') :]}"


@pytest.mark.nightly
def test_branches_that_are_not_taken_are_listed_on_request() -> None:
    found = [code(line) for line in told(Torch(), NNX(), branches=True) if "test_unexercised" in line]
    assert found == [
        "test_unexercised.py: `if scale is not None:` in Torch.forward is never true",
        "test_unexercised.py: `if auxiliary:` in Torch.forward is never true",
        "test_unexercised.py: `if scale is not None:` in NNX.__call__ is never true",
    ]
    scaled = told(*linen_pair(), branches=True, keywords={"scale": np.full(8, 2.0)})
    assert [code(line) for line in scaled if "scale" in line] == [
        "test_unexercised.py: `if scale is not None:` in Torch.forward is never false",
        "test_unexercised.py: `if scale is not None:` in Linen.__call__ is never false",
    ]


def test_a_process_that_is_traced_cannot_be_asked_for_branches() -> None:
    import coverage

    other = coverage.Coverage(data_file=None, config_file=False)
    other.start()
    try:
        with pytest.raises(UserError, match=r"^branches: another tool traces this process"):
            parity.check(torch.nn.Linear(4, 2), nnx.Linear(4, 2, rngs=nnx.Rngs(0)), X, steps=1, branches=True)
    finally:
        other.stop()


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "coverage", None)
    with pytest.raises(UserError, match=r"pip install coverage$"):
        parity.check(torch.nn.Linear(4, 2), nnx.Linear(4, 2, rngs=nnx.Rngs(0)), X, steps=1, branches=True)


class Rectified(torch.nn.Module):
    """One branch of two, or the whole model, ends in a ReLU that is never on."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone, self.body, self.density, self.skip = alone, *(torch.nn.Linear(4, 4) for _ in range(3))
        with torch.no_grad():
            self.density.bias.sub_(50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.density(torch.tanh(self.body(x))))
        return y if self.alone else y + self.skip(x)


class NNXRectified(nnx.Module):
    def __init__(self, alone: bool, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.body, self.density, self.skip = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))
        self.alone, self.function = alone, nnx.sigmoid if wrong else jax.numpy.tanh

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.density(self.function(self.body(x))))
        return y if self.alone else y + self.skip(x)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_outputs_that_nothing_moves_are_no_parity(wrong: bool) -> None:
    names = {"body": "body", "density": "density", "skip": None}
    model, port = Rectified(True), NNXRectified(True, wrong)
    for ours, theirs in ((model.body, port.body), (model.density, port.density)):
        held: Any = theirs
        held.kernel[...], held.bias[...] = ours.weight.detach().numpy().T, ours.bias.detach().numpy()
    report = parity.check(model, port, X, names=names, steps=1)
    assert report.exit_code == 2
    assert "no output moves with PyTorch's weights" in str(report.models[0].undecided)


def test_layers_that_no_output_depends_on_are_listed() -> None:
    model = Rectified(False)
    report = parity.check(model, parity.move(model, NNXRectified(False), X), X, steps=1)
    assert report
    assert report.models[0].unexercised == (
        "PyTorch: layers that no output depends on for these inputs: body, density",
    )
