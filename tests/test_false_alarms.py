"""Faithful pairs that the check once refused, each with a mistake of the same kind that it must find."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import parity
from parity.numerics.layouts import first, with_first
from parity.running import pytorch as run_pytorch
from parity.running.taps import Recorder
from parity.traps.catalogue import LAYERS
from parity.traps.planting import plant_in
from ports import UserError, optim
from ports.layers.linen import BatchNorm as PortBatchNorm
from ports.optimizers import VARIANTS

pytestmark = pytest.mark.usefixtures("quick")


def named(report: parity.Report) -> list[tuple[str, str | None]]:
    """Return place and trap of every finding."""
    return [(finding.layer, finding.trap) for finding in report.models[0].findings]


def differing(report: parity.Report) -> dict[str, str]:
    """Return the quantities outside their bounds, with the tensor that is worst."""
    return {row.quantity: row.tensor for row in report.models[0].rows if not row.ok}


IMAGES = np.random.default_rng(0).standard_normal((4, 3, 5, 6))


class FrozenStatistics(nnx.BatchNorm):
    """BatchNorm through whose statistics no gradient flows."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        y, (x,) = super().__call__(*args, **keywords), args
        if self.use_running_average:
            return y
        mean, var = (jax.lax.stop_gradient(f(x, (0, 1, 2))) for f in (jax.numpy.mean, jax.numpy.var))
        scale: Any = self.scale
        return (x - mean) / jax.numpy.sqrt(var + self.epsilon) * scale + self.bias


class AlwaysEval(nnx.BatchNorm):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return super().__call__(*args, **{**keywords, "use_running_average": True})


class Convolutions(nnx.Module):
    def __init__(self, norm: Any, rngs: nnx.Rngs) -> None:
        self.up = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.norm = norm
        self.down = nnx.Conv(4, 2, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.norm(self.up(x))))


def convolutions(inplace: bool = False, norm: Any = nnx.BatchNorm, **settings: Any) -> tuple[Any, ...]:
    """Return a pair whose BatchNorm has Flax's biased running variance, and these settings besides."""
    torch.manual_seed(0)
    up, down = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1)
    model = torch.nn.Sequential(up, torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace), down)
    rngs = nnx.Rngs(0)
    port = Convolutions(norm(4, **{"epsilon": 1e-5, "momentum": 0.9, **settings}, rngs=rngs), rngs)
    return model, parity.move(model, port, IMAGES), IMAGES


BIASED = ("1", "bn-running-var")
MISTAKES = {
    "epsilon": ({"epsilon": 1e-3}, "bn-epsilon-1e-3"),
    "momentum": ({"momentum": 0.99}, "bn-momentum-0.99"),
    "eval": ({"norm": AlwaysEval}, "bn-always-eval"),
    "gradient": ({"norm": FrozenStatistics}, "bn-statistics-constant"),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["fresh", "inplace"])
def test_an_accepted_layer_stays_in_the_record(inplace: bool) -> None:
    report = parity.check(*convolutions(inplace), accept=["bn-running-var"])
    assert report, str(report)
    (model,) = report.models
    assert [point.layer for point in model.profile["nnx"]["layer.eval"]] == ["0", "1", "3"]


class SequenceBatchNorm(torch.nn.BatchNorm1d):
    """BatchNorm of (batch, length, features), as models with the features last write it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("momentum", "code"), [(0.9, 0), (0.99, 1)])
def test_a_variance_is_accepted_in_a_subclass_with_the_channels_last(momentum: float, code: int) -> None:
    torch.manual_seed(0)
    x, rngs = np.random.default_rng(0).standard_normal((3, 5, 4)), nnx.Rngs(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), SequenceBatchNorm(6), torch.nn.Linear(6, 2))
    norm = nnx.BatchNorm(6, momentum=momentum, epsilon=1e-5, rngs=rngs)
    port = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), norm, nnx.Linear(6, 2, rngs=rngs))
    report = parity.check(model, parity.move(model, port, x), x, accept=["bn-running-var"])
    assert report.exit_code == code, str(report)


class Always(nnx.Module):
    """Linear, ReLU, BatchNorm, linear."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.norm(nnx.relu(self.up(x))))


@pytest.mark.sample(1)
@pytest.mark.parametrize(("rate", "code"), [(1e-3, 0), (1.00001e-3, 1)])
def test_a_step_that_is_made_of_rounding_decides_nothing(rate: float, code: int) -> None:
    """The first channel's ReLU is always on, so its bias has no effect; Adam makes a step of its rounding."""
    torch.manual_seed(0)
    x, nn = np.random.default_rng(0).standard_normal((6, 4)), torch.nn
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[0] = 10.0  # pyright: ignore[reportIndexIssue]
    how: Any = {"optimizer": lambda ps: torch.optim.Adam(ps, 1e-3), "tx": optax.adam(rate), "steps": 1}
    port = parity.move(model, Always(nnx.Rngs(0)), x)
    report = parity.check(model, port, x, accept=["bn-running-var"], **how)
    assert report.exit_code == code, str(report)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", [*MISTAKES])
def test_accept_hides_no_other_mistake_in_the_layer(case: str) -> None:
    settings, trap = MISTAKES[case]
    report = parity.check(*convolutions(inplace=True, **settings), accept=["bn-running-var"])
    assert named(report) == [("1", trap)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", ["epsilon", "momentum", "gradient"])
def test_two_mistakes_in_one_layer_are_both_named(case: str) -> None:
    settings, trap = MISTAKES[case]
    report = parity.check(*convolutions(**settings))
    assert sorted(named(report)) == sorted([("1", trap), BIASED])


def test_three_mistakes_in_one_layer_are_all_named() -> None:
    report = parity.check(*convolutions(epsilon=1e-3, momentum=0.99))
    assert {*named(report)} == {("1", "bn-epsilon-1e-3"), ("1", "bn-momentum-0.99"), BIASED}


PLANTED_LAYERS = (torch.nn.Conv2d(2, 3, (2, 3), stride=2, padding=1), torch.nn.BatchNorm2d(2), torch.nn.LayerNorm(5))
PLANTED = {
    trap.name: (trap, layer)
    for trap in LAYERS
    for layer in PLANTED_LAYERS
    if isinstance(layer, trap.layers) and plant_in(trap, copy.deepcopy(layer))
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_layer_is_called_once_and_keeps_its_tensors(name: str) -> None:
    trap, layer = PLANTED[name]
    net, record = torch.nn.Sequential(copy.deepcopy(layer)).train(), Recorder()
    assert plant_in(trap, net[0])
    with run_pytorch.tapped(net, record, ["0"]):
        net(torch.randn(2, 2, 2, 5, generator=torch.Generator().manual_seed(0)))
    assert [*record.outputs] == ["0"]
    assert [*net.state_dict()] == [f"0.{tensor}" for tensor in layer.state_dict()]
    assert net[0].training


class TwoInputs(torch.nn.Module):
    """Reads a dict whose keys are not sorted, and gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, batch: Any, *, extra: Any) -> Any:
        y = self.left(batch["b"]) + 2 * torch.tanh(self.right(batch["a"][0]["z"]))
        return {"y": y * extra["w"], "x": [{"n": y - extra["v"], "m": batch["a"][0]["k"]}]}


def read(port: Any, batch: Any, extra: Any, exchanged: bool = False) -> Any:
    b, a = batch["b"], batch["a"][0]["z"]
    b, a = (a, b) if exchanged else (b, a)
    y = port.left(b) + 2 * jax.numpy.tanh(port.right(a))
    return {"x": [{"m": batch["a"][0]["k"], "n": y - extra["v"]}], "y": y * extra["w"]}


class LinenInputs(linen.Module):
    exchanged: bool = False

    def setup(self) -> None:
        self.left, self.right = linen.Dense(3), linen.Dense(3)

    def __call__(self, batch: Any, *, extra: Any) -> Any:
        return read(self, batch, extra, self.exchanged)


class NnxInputs(nnx.Module):
    def __init__(self, exchanged: bool, rngs: nnx.Rngs) -> None:
        self.left, self.right = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.exchanged = exchanged

    def __call__(self, batch: Any, *, extra: Any) -> Any:
        return read(self, batch, extra, self.exchanged)


def arrays(*names: str, columns: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng([len(names), columns])
    return {name: rng.standard_normal((5, columns)) for name in names}


BATCH = {"b": arrays("b")["b"], "a": [{"z": arrays("z", "_")["z"], "k": arrays("k", "_", "_")["k"]}]}
EXTRA = arrays("w", "v", columns=3)


def two_inputs(port: str, exchanged: bool = False) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = TwoInputs()
    options: dict[str, Any] = {"keywords": {"extra": EXTRA}}
    if port == "nnx":
        return model, parity.move(model, NnxInputs(exchanged, nnx.Rngs(0)), BATCH, **options), BATCH
    module = LinenInputs(exchanged)
    return (
        model,
        parity.move(model, (module, module.init(jax.random.key(0), BATCH, extra=EXTRA)), BATCH, **options),
        BATCH,
    )


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_a_dict_of_inputs_in_any_order_passes(port: str) -> None:
    report = parity.check(*two_inputs(port), keywords={"extra": EXTRA}, dtypes=("float32",))
    assert report, str(report)
    gradients = [row for row in report.models[0].precision if row.quantity == "gradient.input"]
    assert all(row.multiple < 32 for row in gradients)
    assert len(gradients) == 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_exchanged_inputs_of_a_dict_are_found(port: str) -> None:
    report = parity.check(*two_inputs(port, exchanged=True), keywords={"extra": EXTRA})
    assert {"output.eval", "gradient.input"} <= {*differing(report)}


class Values(torch.nn.Linear):
    """Takes the inputs in the order in which the caller wrote them."""

    def forward(self, batch: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(torch.cat([*batch.values()], -1))


class NnxValues(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, batch: Any) -> jax.Array:
        return self.linear(jax.numpy.concatenate([*batch.values()], -1))


def test_the_port_gets_a_dict_in_the_callers_order() -> None:
    torch.manual_seed(0)
    model, x = Values(8, 3), arrays("b", "a")
    parity.assert_parity(model, parity.move(model, NnxValues(nnx.Rngs(0)), x), x)


def test_the_first_array_does_not_depend_on_the_order_of_keys() -> None:
    a, b = np.zeros(1), np.ones(1)
    for value in ({"b": b, "a": (None, a)}, {"a": (None, a), "b": b}):
        assert first(value) is a
        changed = with_first(value, new := np.full(1, 2.0))
        assert changed["a"][1] is new
        assert changed["b"] is b


def test_two_inputs_of_one_name_are_refused() -> None:
    x = np.ones((2, 4))
    with pytest.raises(UserError, match=r"two arrays are called input\.a\.b"):
        parity.check(torch.nn.Linear(4, 3), nnx.Linear(4, 3, rngs=nnx.Rngs(0)), {"a.b": x, "a": {"b": x}})


class NnxLinear(nnx.Module):
    def __init__(self, columns: int, stopped: str = "", rngs: nnx.Rngs | None = None) -> None:
        self.linear = nnx.Linear(columns, 1, rngs=rngs or nnx.Rngs(0))
        self.stopped = stopped

    def __call__(self, x: jax.Array) -> jax.Array:
        bias: Any = self.linear.bias
        once = bias.get_value()
        # The value is right in all cases, and the gradient a billionth too large in one.
        more = once + 1e-9 * (once - jax.lax.stop_gradient(once)) if self.stopped else once
        return x @ self.linear.kernel.get_value() + more


def one_number(rows: int, bias: float = 0.0, stopped: str = "") -> tuple[Any, ...]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 1)
    torch.nn.init.constant_(linear.bias, bias)
    model = torch.nn.Sequential(OrderedDict(linear=linear))
    x = np.random.default_rng(rows).standard_normal((rows, 4))
    return model, parity.move(model, NnxLinear(4, stopped), x), x


@pytest.mark.sample(2)
@pytest.mark.parametrize("bias", [0.0, 1e-6, 1e-300])
@pytest.mark.parametrize("rows", [3, 1000])
def test_a_bias_of_one_number_passes(rows: int, bias: float) -> None:
    report = parity.check(*one_number(rows, bias), steps=4)
    assert report, str(report)


@pytest.mark.sample(3)
@pytest.mark.parametrize("optimizer", VARIANTS)
def test_a_bias_of_one_number_passes_with_every_optimizer(optimizer: str) -> None:
    report = parity.check(*one_number(50), optimizer=optimizer, steps=4)
    assert report, str(report)


def test_a_wrong_gradient_of_one_number_is_found() -> None:
    report = parity.check(*one_number(1000, stopped="a little"))
    assert {"gradient.parameter", "training.parameter"} <= {*differing(report)}


SLOPES = np.array([0.1, 0.2, 0.3, -0.6, 0.7, -0.7, 0.1, 0.2, 0.3, -0.6])


def test_the_rounding_of_a_sum_that_cancels_is_that_of_its_terms() -> None:
    """Both frameworks sum slopes that cancel, in an order of their own: the last digits are all that the sum has."""

    def in_torch(y: torch.Tensor) -> torch.Tensor:
        return (y[:, 0] * torch.as_tensor(SLOPES)).sum()

    report = parity.check(*one_number(len(SLOPES)), loss=(in_torch, lambda y: (y[:, 0] * SLOPES).sum()))
    assert report, str(report)


class Tiny(torch.nn.Module):
    """Its first bias is far smaller than all other parameters."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        torch.nn.init.normal_(self.up.bias, std=scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class NnxTiny(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("scale", [1e-6, 1e-9])
def test_a_tiny_bias_leaves_the_training_decidable(scale: float, optimizer: str) -> None:
    torch.manual_seed(0)
    model, x = Tiny(scale), np.random.default_rng(0).standard_normal((5, 4))
    port = parity.move(model, NnxTiny(nnx.Rngs(0)), x)
    report = parity.check(model, port, x, optimizer=optimizer)
    assert report, str(report)
    (wrong,) = parity.check(model, port, x, optimizer=lambda ps: torch.optim.SGD(ps, 1e-3), tx=optax.sgd(2e-3)).models
    assert {row.quantity for row in wrong.rows if not row.ok} == {"training.parameter"}


class Table(torch.nn.Module):
    """Two layers and a table between them, which may be a parameter or a buffer; some may be frozen."""

    def __init__(self, table: str = "parameter", frozen: str = "", detached: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        values, self.detached = torch.linspace(0.5, 2.0, 6), detached
        if table == "buffer":
            self.register_buffer("table", values)
        else:
            self.table = torch.nn.Parameter(values)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not any(name.startswith(part) for part in frozen.split()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.up(x))
        return self.down((y.detach() if self.detached else y) * self.table)


class Constant(nnx.Variable):
    """Not an `nnx.Param`: nothing trains it."""


def stopped(tensor: Any) -> Any:
    return jax.lax.stop_gradient(tensor.get_value())


class NnxTable(nnx.Module):
    def __init__(self, kind: Any = nnx.Param, stop: str = "") -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.table = kind(jax.numpy.linspace(0.5, 2.0, 6))
        self.stop = stop

    def __call__(self, x: jax.Array) -> jax.Array:
        y: Any = x @ stopped(self.up.kernel) + stopped(self.up.bias) if "up" in self.stop else self.up(x)
        y = jax.numpy.tanh(y)
        y = jax.lax.stop_gradient(y) if "between" in self.stop else y
        return self.down(y * (stopped(self.table) if "table" in self.stop else self.table.get_value()))


class LinenTable(linen.Module):
    collection: str = "params"
    stop: str = ""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.numpy.tanh(linen.Dense(6, name="up")(x))
        if self.collection == "params":
            table = self.param("table", lambda _: jax.numpy.linspace(0.5, 2.0, 6))
        else:
            table = self.variable(self.collection, "table", lambda: jax.numpy.linspace(0.5, 2.0, 6)).value
        return linen.Dense(3, name="down")(y * (jax.lax.stop_gradient(table) if self.stop else table))


X = np.random.default_rng(0).standard_normal((5, 4))


def moved(model: torch.nn.Module, port: Any) -> tuple[Any, ...]:
    if isinstance(port, linen.Module):
        port = port, port.init(jax.random.key(0), X)
    return model, parity.move(model, port, X), X


def constant(layer: nnx.Module) -> None:
    """Make all parameters of a layer variables of another type."""
    for name, value in vars(layer).items():
        if isinstance(value, nnx.Param):
            setattr(layer, name, Constant(value.get_value()))


@pytest.mark.sample(3)
@pytest.mark.parametrize("optimizer", VARIANTS)
def test_a_frozen_layer_stays_with_every_named_optimizer(optimizer: str) -> None:
    pair = moved(Table(frozen="up"), NnxTable(stop="up"))
    report = parity.check(*pair, optimizer=optimizer, steps=4)
    assert report, str(report)
    assert "gradients not compared: up.bias, up.weight" in report.models[0].note


def test_a_frozen_layer_stays_with_clipping_and_accumulation() -> None:
    pair = moved(Table(frozen="up table"), NnxTable(stop="up table"))
    parity.assert_parity(*pair, clip_grad_norm=0.01, accumulate=2)


def test_a_frozen_layer_of_other_variables_stays() -> None:
    port = NnxTable()
    constant(port.up)
    parity.assert_parity(*moved(Table(frozen="up"), port), optimizer="adamw")


@pytest.mark.sample(1)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_layer_with_a_gradient_in_the_port_is_told_as_advice(optimizer: str) -> None:
    """In JAX the optimizer leaves parameters as they are: nothing of the port's own says that they are frozen."""
    pair = moved(Table(frozen="up"), NnxTable())
    report = parity.check(*pair, optimizer=optimizer, clip_grad_norm=0.01)
    assert report, str(report)
    (line,) = report.models[0].advice
    assert line.startswith(
        "nnx: up.bias and 1 more: PyTorch's is frozen, the port's gets a gradient; in training, stop"
    )
    assert not parity.check(pair[0], NnxTable(), pair[2], optimizer=optimizer)


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.01, weight_decay=0.1)


def decayed(kept: str = "") -> Any:
    """Return the same in optax; `kept` stays as it is."""
    tx = optim.sgd(0.01, weight_decay=0.1)
    names = kept or "nothing"
    return optim.trained(
        tx, lambda tree: jax.tree_util.tree_map_with_path(lambda at, _: names not in jax.tree_util.keystr(at), tree)
    )


@pytest.mark.parametrize("stop", ["", "up"])
def test_a_transform_of_ones_own_decides_what_stays(stop: str) -> None:
    pair = moved(Table(frozen="up"), NnxTable(stop=stop))
    parity.assert_parity(*pair, optimizer=sgd, tx=decayed(kept="up"))
    report = parity.check(*pair, optimizer=sgd, tx=decayed())
    assert "training.parameter" in differing(report)
    assert {layer for layer, _ in named(report)} == {"(the optimizer)"}


@pytest.mark.sample(1)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_detached_layer_has_no_gradient(optimizer: str) -> None:
    """PyTorch does not freeze it, and no gradient reaches it: the port's must be zero, too."""
    parity.assert_parity(*moved(Table(detached=True), NnxTable(stop="between")), optimizer=optimizer)
    report = parity.check(*moved(Table(detached=True), NnxTable()), optimizer=optimizer)
    assert {"gradient.parameter", "training.parameter"} <= {*differing(report)}
    assert {"up", "(the network)"} >= {layer for layer, _ in named(report)} >= {"up"}
    assert not parity.check(*moved(Table(detached=True), NnxTable()), steps=0)


BUFFERS = {
    "nnx": (lambda: NnxTable(Constant), lambda: NnxTable(stop="table"), NnxTable),
    "linen": (lambda: LinenTable("constants"), lambda: LinenTable(stop="table"), LinenTable),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", BUFFERS)
def test_a_buffer_is_compared_by_value_and_stays(port: str) -> None:
    constant, still, trained = BUFFERS[port]
    for make in (constant, still):
        report = parity.check(*moved(Table("buffer"), make()), optimizer="adamw")
        assert report, str(report)
        (row,) = (row for row in report.models[0].rows if row.quantity == "statistics")
        assert row.tensor == "table"
    assert "gradients not compared: table" in report.models[0].note
    report = parity.check(*moved(Table("buffer"), trained()))
    assert report, str(report)
    assert "table: PyTorch's is a buffer, the port's gets a gradient" in report.models[0].advice[0]


@pytest.mark.parametrize("port", BUFFERS)
def test_a_parameter_that_the_port_cannot_train_is_found(port: str) -> None:
    constant, _, _ = BUFFERS[port]
    parity.assert_parity(*moved(Table(frozen="table"), constant()))
    report = parity.check(*moved(Table(), constant()))
    assert {*differing(report)} == {"training.parameter", "training.state"}
    assert named(report) == [("table", None)]
    assert "PyTorch trains it" in report.models[0].findings[0].text
    parity.assert_parity(*moved(Table(), constant()), steps=0)


def test_a_wrong_gradient_next_to_a_buffer_is_found() -> None:
    report = parity.check(*moved(Table("buffer"), NnxTable(stop="table between")))
    assert "gradient.parameter" in differing(report)


def test_a_frozen_model_has_no_training_to_compare() -> None:
    report = parity.check(*moved(Table(frozen="up down table"), NnxTable()))
    assert report, str(report)
    assert [row.quantity for row in report.models[0].rows][-1] == "statistics"


class Tokens(torch.nn.Embedding):
    """No gradient reaches its input."""


class NnxTokens(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(5, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.embed(x)


def test_a_frozen_model_without_any_gradient_passes() -> None:
    model, x = Tokens(5, 3).requires_grad_(False), np.array([[0, 3, 1], [2, 2, 4]])
    parity.assert_parity(model, parity.move(model, NnxTokens(), x), x)


class ActivatedNorm(torch.nn.BatchNorm2d):
    """BatchNorm with the activation in it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(super().forward(input))


class ActivatedOutside(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down = (nnx.Conv(a, b, (3, 3), padding=1, rngs=rngs) for a, b in ((3, 4), (4, 2)))
        self.norm = nnx.BatchNorm(4, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.norm(self.up(x))))


def test_statistics_are_told_beside_a_layer_that_is_cut_otherwise() -> None:
    torch.manual_seed(0)
    layers = {"up": torch.nn.Conv2d(3, 4, 3, padding=1), "norm": ActivatedNorm(4)}
    model = torch.nn.Sequential(OrderedDict(layers, down=torch.nn.Conv2d(4, 2, 3, padding=1)))
    report = parity.check(model, parity.move(model, ActivatedOutside(), IMAGES), IMAGES)
    assert {*differing(report)} == {"statistics"}
    assert named(report) == [("norm", "bn-momentum-0.99"), ("norm", "bn-running-var")]


class ScaledEmbedding(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


class EmbeddedOutside(nnx.Module):
    def __init__(self, factor: float) -> None:
        rngs, self.factor = nnx.Rngs(0), factor
        self.embed, self.out = nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.out(self.embed(ids) * self.factor)


@pytest.mark.parametrize(("factor", "count"), [(3.0, 0), (3.001, 1)])
def test_a_mistake_behind_a_layer_that_is_cut_otherwise_is_one_finding(factor: float, count: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(OrderedDict(embed=ScaledEmbedding(7, 4), out=torch.nn.Linear(4, 3)))
    ids = np.arange(7)[None]
    report = parity.check(model, parity.move(model, EmbeddedOutside(factor), ids), ids, steps=1)
    found = report.models[0].findings
    assert [finding.size is not None and finding.size < 1e-3 for finding in found] == [True] * count


class FunctionalNorm(torch.nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class ChannelsLast(torch.nn.Module):
    """Norms over channels that it moves last, on images that are as high and wide as they have channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 4)
        self.before, self.after = FunctionalNorm(4, 1e-2), FunctionalNorm(4, 1e-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.after(torch.tanh(self.dense(self.before(x)))).permute(0, 3, 1, 2)


class ChannelsLastPort(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.conv, self.dense = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.before, self.after = (nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.after(jax.numpy.tanh(self.dense(self.before(self.conv(x)))))


def test_one_wrong_number_in_one_line_is_one_finding_in_whatever_layout() -> None:
    torch.manual_seed(0)
    model, images = ChannelsLast(), np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    report = parity.check(model, parity.move(model, ChannelsLastPort(2e-3), images), images, steps=1)
    (finding,) = report.models[0].findings
    assert (finding.layer, finding.also) == ("before", ("after",))
    assert "computed with 0.002 instead of 0.01 in `layer_norm`" in finding.text


class ByMutability(linen.Module):
    """Takes its mode from whether the statistics may change, as jax-resnet does."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=1)(x)
        mutable = self.is_mutable_collection("batch_stats")
        return PortBatchNorm(use_running_average=not mutable, momentum=0.9, use_fast_variance=False)(x)


class AlwaysTrained(ByMutability):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=1)(x)
        return PortBatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)(x)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("port", "traps"), [(ByMutability(), []), (AlwaysTrained(), ["bn-always-train"])])
def test_a_mode_that_follows_from_mutability(port: linen.Module, traps: list[str]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
    images = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    moved = parity.move(model, (port, port.init(jax.random.key(0), images.transpose(0, 2, 3, 1))), images)
    report = parity.check(model, moved, images, steps=1)
    assert [finding.trap for finding in report.models[0].findings] == traps
    assert bool(report) is not bool(traps)
