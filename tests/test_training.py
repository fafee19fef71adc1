"""Training is compared with every optimizer, after one, three and all steps; what is not the same is found."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from parity.numerics.quantities import after, parameter_of
from parity.running import on_disk as spill
from parity.traps.catalogue import TRAINING
from ports import UserError, optim
from ports.optimizers import CLASSES, VARIANTS

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((6, 5))
LR = 0.02


class Net(torch.nn.Module):
    """With a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.spare, self.down = torch.nn.Linear(5, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.spare = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.numpy.tanh(self.up(x)))


@pytest.fixture(scope="module")
def pair() -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = Net()
    return model, parity.move(model, Port(nnx.Rngs(0)), X), X


@pytest.mark.sample(1)
@pytest.mark.parametrize("optimizer", VARIANTS)
def test_every_named_optimizer_passes(optimizer: str, pair: tuple[Any, ...]) -> None:
    (model,) = parity.check(*pair, optimizer=optimizer, steps=4).models
    assert model.ok, str(model)
    assert model.rows[-1].quantity == "training.state"


def test_clipping_and_accumulation_pass_together(pair: tuple[Any, ...]) -> None:
    parity.assert_parity(*pair, optimizer="dampened", clip_grad_norm=0.05, accumulate=3)


@pytest.mark.parametrize("options", [{"clip_grad_norm": 0.05}, {"accumulate": 2}], ids=["clip", "accumulate"])
def test_what_the_port_leaves_out_is_found(options: dict[str, Any], pair: tuple[Any, ...]) -> None:
    def falling(params: Any) -> Any:
        return torch.optim.SGD(params, lr=LR)

    (model,) = parity.check(*pair, optimizer=falling, tx=optax.sgd(LR), **options).models
    assert {row.quantity for row in model.rows if not row.ok} == {"training.parameter"}


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=LR, weight_decay=0.1)


def used(params: Any) -> Any:
    """Which parameters get a gradient."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "spare" not in jax.tree_util.keystr(path), params)


def test_a_parameter_without_a_gradient_must_stay(pair: tuple[Any, ...]) -> None:
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR))
    (model,) = parity.check(*pair, optimizer=sgd, tx=tx).models
    assert [f.trap for f in model.findings] == ["idle-parameters-trained"]

    parity.assert_parity(*pair, optimizer=sgd, tx=optim.trained(tx, used))


def test_an_unknown_mistake_is_a_finding_without_a_name(pair: tuple[Any, ...]) -> None:
    (model,) = parity.check(*pair, optimizer=lambda params: torch.optim.SGD(params, lr=LR), tx=optax.sgd(2 * LR)).models
    assert [(f.layer, f.trap) for f in model.findings] == [("(the optimizer)", None)]
    assert "after step 1" in model.findings[0].text


def test_a_mistake_is_not_named_after_another_optimizer(pair: tuple[Any, ...]) -> None:
    """AdamW alone has 1e-4 as optax's default decay."""
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(LR))
    (model,) = parity.check(*pair, optimizer=sgd, tx=optim.trained(tx, used)).models
    assert [f.trap for f in model.findings] == [None]


def test_traps_are_made_where_the_table_has_the_class() -> None:
    parts = {"any optimizer", "schedule", "clipping", "accumulation"}
    assert {name for trap in TRAINING for name in trap.names} - parts <= set(CLASSES)
    assert {trap.name: trap.names for trap in TRAINING}["momentum-missing"] == ("SGD", "RMSprop")


def test_a_wrong_state_alone_is_found(pair: tuple[Any, ...]) -> None:
    """RMSprop's average of squares, kept without its factor, gives the same updates."""

    def rule(g: Any, p: Any, held: dict[str, Any], rate: Any, step: Any) -> Any:
        square = 0.99 * held["square_avg"] + g * g
        return -rate * g / (jax.numpy.sqrt(0.01 * square) + 1e-8), {"square_avg": square}

    def rmsprop(params: Any) -> Any:
        return torch.optim.RMSprop(params, lr=LR)

    tx = optim.trained(optim.from_rule(LR, {"square_avg": 0.0}, rule), lambda p: jax.tree.map(lambda _: True, p))
    (model,) = parity.check(*pair, optimizer=rmsprop, tx=tx).models
    assert {row.quantity for row in model.rows if not row.ok} == {"training.state"}
    assert model.first_divergence is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adm"}, "got 'adm', expected one of sgd"),
        ({"optimizer": sgd}, "expected tx= besides"),
        ({"accumulate": 0}, "accumulate=0: expected 1 or more"),
        ({"clip_grad_norm": -1.0}, "expected 1 or more passes, and a norm above 0"),
    ],
)
def test_bad_options_are_clear_errors(options: dict[str, Any], said: str, pair: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=said):
        parity.check(*pair, **options)


def test_the_names_of_tensors_after_steps() -> None:
    assert list(after(3, {"exp_avg/a.b": 0})) == ["exp_avg/a.b@3"]
    assert parameter_of("training.state", "exp_avg/a.b@3") == parameter_of("training.parameter", "a.b@1") == "a.b"
    assert parameter_of("training.state", "exp_avg/a/b@3") == parameter_of("training.parameter", "a/b@1") == "a/b"


def test_accumulated_gradients_are_summed_as_pytorchs_are() -> None:
    gradients = np.random.default_rng(1).standard_normal((6, 4))
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    with jax.enable_x64(True):
        tx = optim.accumulate(optim.sgd(0.1, momentum=0.9), 3)
        params = jax.numpy.ones(4)
        state = tx.init(params)
        for i, gradient in enumerate(gradients):
            (parameter * torch.from_numpy(gradient)).sum().backward()
            updates, state = tx.update(jax.numpy.array(gradient), state, params)
            params = optax.apply_updates(params, updates)
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
            np.testing.assert_allclose(np.asarray(params), parameter.detach().numpy(), rtol=1e-15)
    with pytest.raises(UserError, match="accumulate: passes: got 0"):
        optim.accumulate(optim.sgd(0.1), 0)


def test_large_quantities_lie_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = {str(shape): rng.standard_normal(shape) for shape in [(3, 4), (), (0, 3), (700, 20)]}
    tensors["transposed"] = rng.standard_normal((30, 40)).T
    monkeypatch.setattr(spill, "SMALL", 1000)
    found = spill.spilled([("large", tensors), ("small", {"a": np.ones(3)})])
    assert isinstance(found["large"]["(700, 20)"], np.memmap)
    assert not isinstance(found["small"]["a"], np.memmap)
    for name, array in tensors.items():
        assert np.array_equal(found["large"][name], array)
        assert found["large"][name].shape == array.shape


def test_without_room_on_disk_they_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "SMALL", 1)
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", full)
    assert np.array_equal(spill.spilled([("q", {"a": np.arange(9.0)})])["q"]["a"], np.arange(9.0))
