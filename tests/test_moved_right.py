"""`parity.move` puts every weight where it belongs, or refuses: never by the order in which things are written."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from generated import verdict

import parity
from parity import moving
from parity.pairing import trials
from parity.running.flax_ports import FlaxPort
from ports import UserError
from ports.weights import WeightsError

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(20))
def test_generated_models_are_moved_rightly_or_refused(seed: int) -> None:
    """`python tests/generated.py 1000` does it with more."""
    assert verdict(seed) in ("right", "refused")


def test_generated_models_are_not_all_refused() -> None:
    """Own parameters under the same names in modules of other names, layers in other orders, a port with a mistake."""
    assert [verdict(seed) for seed in (0, 2, 5, 6, 7)] == ["right"] * 5


class TorchAffine(torch.nn.Module):
    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.names = (first, second)
        for name in self.names:
            self.register_parameter(name, torch.nn.Parameter(torch.randn(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * getattr(self, self.names[0]) + getattr(self, self.names[1])


class TorchNet(torch.nn.Module):
    def __init__(self, first: str = "scale", second: str = "bias") -> None:
        super().__init__()
        self.lin1, self.aff1 = torch.nn.Linear(8, 8), TorchAffine(first, second)
        self.lin2, self.aff2 = torch.nn.Linear(8, 8), TorchAffine(first, second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aff2(self.lin2(self.aff1(self.lin1(x))))


class Affine(linen.Module):
    """Its parameters are `scale` and `bias`, which JAX sorts the other way round."""

    exchanged: bool = False

    @linen.compact
    def __call__(self, x: Any) -> Any:
        scale, bias = (self.param(n, linen.initializers.normal(), (8,)) for n in ("scale", "bias"))
        return x * bias + scale if self.exchanged else x * scale + bias


class Net(linen.Module):
    exchanged: bool = False

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = Affine(self.exchanged, name="first")(linen.Dense(8)(x))
        return Affine(self.exchanged, name="second")(linen.Dense(8)(x))


def moved(model: torch.nn.Module, module: Any, **options: Any) -> float:
    """Move the weights and return how far the outputs are from PyTorch's."""
    _, variables = parity.move(model, (module, module.init(jax.random.key(0), X)), X, **options)
    expected = model(torch.tensor(X)).detach().numpy()
    return float(np.abs(np.asarray(module.apply(variables, X)) - expected).max())


NAMED = {f"aff{i}.{leaf}": f"{name}.{leaf}" for i, name in ((1, "first"), (2, "second")) for leaf in ("scale", "bias")}


@pytest.mark.parametrize("names", [None, NAMED, {"aff1": "first"}, {"aff2.bias": "second.bias"}])
def test_own_parameters_under_equal_names(names: Any) -> None:
    torch.manual_seed(0)
    assert moved(TorchNet(), Net(), names=names) < 1e-6


@pytest.mark.parametrize("exchanged", [False, True])
def test_computing_tells_own_parameters_under_other_names(exchanged: bool) -> None:
    """Nothing but their use tells the one from the other."""
    torch.manual_seed(0)
    assert moved(TorchNet("alpha", "omega"), Net(exchanged)) < 1e-6


class Doubled(Affine):
    """A factor that PyTorch lacks hides in which order the two are used."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return super().__call__(2 * x)


def test_own_parameters_under_other_names_are_refused_behind_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(globals(), "Affine", Doubled)
    model = TorchNet("alpha", "omega")
    with pytest.raises(UserError, match=r"say it with names=\{'aff1\.alpha': 'first\.(bias|scale)'"):
        moved(model, Net())
    names = {f"aff{i}.alpha": f"{name}.scale" for i, name in ((1, "first"), (2, "second"))}
    assert moved(model, Net(), names=names) > 1e-3


@pytest.mark.parametrize("exchanged", [False, True])
def test_own_parameters_whose_names_say_what_they_are(exchanged: bool) -> None:
    """A weight is a scale, and an offset a bias; what the port does with them decides."""
    torch.manual_seed(0)
    model = TorchNet("weight", "offset")
    if exchanged:
        with pytest.raises(UserError, match="agree only if"):
            moved(model, Net(exchanged))
    else:
        assert moved(model, Net(exchanged)) < 1e-6


def test_names_that_the_use_contradicts_are_refused() -> None:
    """In PyTorch `scale` is added to the product with `factor`; in the port it is the factor."""
    torch.manual_seed(0)
    model = TorchNet("factor", "scale")
    with pytest.raises(UserError, match="agree only if these are exchanged"):
        moved(model, Net())
    names = {f"aff{i}.factor": f"{name}.scale" for i, name in ((1, "first"), (2, "second"))}
    assert moved(model, Net(), names=names) < 1e-6
    assert moved(model, Net(exchanged=True)) < 1e-6


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(torch.softmax(q @ k.mT / 8**0.5, -1) @ v)


class Attention(linen.Module):
    order: str = "qkv"
    factor: float = 1.0

    @linen.compact
    def __call__(self, x: Any) -> Any:
        made = {name: linen.Dense(8)(x) for name in self.order}
        weights = jax.nn.softmax(made["q"] @ made["k"].swapaxes(-1, -2) / 8**0.5)
        return linen.Dense(8)(weights @ made["v"] * self.factor)


@pytest.mark.sample(1)
@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("qkv")])
def test_layers_on_one_input_are_told_by_what_comes_of_them(order: str) -> None:
    """Whichever is called first, and with a mistake behind them."""
    torch.manual_seed(0)
    assert moved(TorchAttention(), Attention(order)) < 1e-6
    assert 1e-6 < moved(TorchAttention(), Attention(order, 1.001)) < 1e-2


def test_without_computing_the_order_of_calls_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that `parity.pairing.ordering` is there for, planted."""
    torch.manual_seed(0)
    monkeypatch.setattr(moving.ordering, "settled", lambda pairing, *_: pairing)
    assert moved(TorchAttention(), Attention("kqv")) > 1e-2


class TorchSum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


class Sum(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(8)(x) + linen.Dense(8)(x)


def test_layers_that_nothing_tells_apart_are_refused() -> None:
    """A sum is the same either way; both layers and both candidates are named."""
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"names=\{'a': 'Dense_0', 'b': 'Dense_1'\}"):
        moved(TorchSum(), Sum())
    assert moved(TorchSum(), Sum(), names={"a": "Dense_1"}) < 1e-6


def test_equal_weights_need_no_telling() -> None:
    """Fresh norms hold the same numbers: exchanged or not, nothing is wrong."""
    torch.manual_seed(0)
    model = TorchSum()
    model.b.load_state_dict(model.a.state_dict())
    assert moved(model, Sum()) < 1e-6


def test_too_many_layers_to_try_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(trials, "TRIALS", 3)
    with pytest.raises(UserError, match="too many layers could be exchanged"):
        moved(TorchAttention(), Attention("kqv"))


def test_what_is_written_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours, planted: a bit of one tensor is lost on its way."""
    written = FlaxPort.written

    def wrong(self: FlaxPort, net: Any, own: Any, layers: Any) -> Any:
        name = next(iter(own))
        return written(self, net, {**own, name: np.nextafter(own[name], np.inf, dtype=np.float32)}, layers)

    torch.manual_seed(0)
    monkeypatch.setattr(FlaxPort, "written", wrong)
    with pytest.raises(RuntimeError, match="does not hold what was written"):
        moved(TorchAttention(), Attention())


def test_numbers_that_a_type_cannot_hold_are_refused() -> None:
    """A float64 model into a float32 port; the port in float64 takes it."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(8, 8, dtype=torch.float64), X.astype(np.float64)
    with pytest.raises(WeightsError, match="lose bits in the Flax model's float32"):
        parity.move(model, nnx.Linear(8, 8, rngs=nnx.Rngs(0)), x)
    with jax.enable_x64(True):
        port = nnx.Linear(8, 8, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        parity.move(model, port, x)
        assert np.array_equal(np.asarray(port.kernel[...]), model.weight.detach().numpy().T)
