"""`parity.check` and `parity.assert_parity`: what they accept, what they say, and training mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import BASIC_NET, BOTTLENECK_NET, OPTION_A_NET, reference, twin

import parity
import ports
from parity.numerics.quantities import QUANTITIES
from parity.running.training import DECAY, transform
from ports import UserError
from ports.families import get
from ports.optimizers import VARIANTS

pytestmark = pytest.mark.usefixtures("quick")

RATES = [DECAY**step for step in range(3)]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    net = reference(OPTION_A_NET)
    return net, twin(net, "nnx")


def schedule(shift: int = 0) -> Callable[[Any], Any]:
    """The learning rates of the check, relative to the first, `shift` steps late."""
    return lambda count: jnp.array(RATES)[jnp.maximum(count - shift, 0)]


def chain(*parts: optax.GradientTransformation) -> Callable[[float], optax.GradientTransformation]:
    return lambda rate: optax.chain(*parts, optax.scale(-rate))


decay, momentum, rates = optax.add_decayed_weights(5e-4), optax.trace(0.9), optax.scale_by_schedule(schedule())

TRAINING_MISTAKES = {
    "decay-missing": chain(momentum, rates),
    "decay-after-momentum": chain(momentum, decay, rates),
    "decay-on-weights-only": chain(
        optax.add_decayed_weights(5e-4, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)), momentum, rates
    ),
    "momentum-is-average": chain(decay, optax.ema(0.9, debias=False), rates),
    "momentum-is-corrected-average": chain(decay, optax.ema(0.9), rates),
    "nesterov-added": chain(decay, optax.trace(0.9, nesterov=True), rates),
    "schedule-late": chain(decay, momentum, optax.scale_by_schedule(schedule(1))),
    "schedule-missing": chain(decay, momentum),
    "rate-before-momentum": chain(decay, rates, momentum),
    None: chain(optax.add_decayed_weights(1e-3), momentum, rates),
}


def test_the_right_training_passes(pair: tuple[Any, Any], rate: float) -> None:
    parity.assert_parity(*pair, tx=chain(decay, momentum, rates)(rate))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", TRAINING_MISTAKES)
def test_training_mistake_is_found_and_named(name: str | None, pair: tuple[Any, Any], rate: float) -> None:
    report = parity.check(*pair, tx=TRAINING_MISTAKES[name](rate))
    assert report.exit_code == 1, str(report)
    assert {row.quantity for row in report.models[0].rows if not row.ok} == {"training.parameter"}
    assert report.models[0].first_divergence is not None
    assert report.models[0].first_divergence.quantity == "training.parameter"
    assert [(f.layer, f.trap) for f in report.models[0].findings] == [("(the optimizer)", name)]


@pytest.fixture(scope="module")
def rate(pair: tuple[Any, Any]) -> float:
    """The learning rate that the check takes for this network and its default probe."""
    from parity.running import probes as probe
    from parity.running import pytorch as run_pytorch

    fed = probe.of_spec(OPTION_A_NET, batch=2, size=probe.default_size(OPTION_A_NET), seed=0)
    return run_pytorch.learning_rate(pair[0], fed)


def test_the_transform_is_torch_sgd(rate: float) -> None:
    """Its parts, written out once more."""
    with jax.enable_x64(True):
        params, gradient = jnp.arange(1.0, 4.0), jnp.array([0.1, -0.2, 0.3])
        results = []
        for tx in (transform(VARIANTS["sgd"], rate), chain(decay, momentum, rates)(rate)):
            p, state = params, tx.init(params)
            for _ in range(3):
                updates, state = tx.update(gradient, state, p)
                p = optax.apply_updates(p, updates)
            results.append(np.asarray(p))
        np.testing.assert_allclose(results[0], results[1], rtol=1e-15)


def test_report_of_a_named_network() -> None:
    report = parity.check_network(OPTION_A_NET, ports=["nnx"], seed=5)
    assert report
    assert report.models[0].findings == ()
    assert [row.quantity for row in report.models[0].rows] == list(QUANTITIES)
    assert all(0 <= row.distance <= row.bound < 1e-7 for row in report.models[0].rows)
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["schema"] == 1
    assert found["models"][0]["rows"][0].keys() == {"port", "quantity", "tensor", "distance", "bound", "ok", "dtype"}
    assert "parity in float64: PyTorch = nnx" in str(report)


@pytest.mark.nightly
def test_other_seeds_are_other_probes() -> None:
    first, second = (
        parity.check_network(OPTION_A_NET, ports=["linen"], seed=seed, steps=0).models[0] for seed in (1, 2)
    )
    assert [row.bound for row in first.rows] != [row.bound for row in second.rows]
    assert "training.parameter" not in {row.quantity for row in first.rows}


def test_assert_parity_shows_the_table(pair: tuple[Any, Any]) -> None:
    torch_net, _ = pair
    wrong = twin(torch_net, "nnx")
    wrong.bn1.epsilon = 1e-3
    with pytest.raises(AssertionError, match=r"first divergence: nnx: layer.eval at bn1"):
        parity.assert_parity(torch_net, wrong, steps=0)


def test_networks_of_float32_are_promoted() -> None:
    net = ports.create(OPTION_A_NET, "pytorch", seed=3)
    flax_net = ports.create(OPTION_A_NET, "nnx", seed=None)
    ports.weights.write(flax_net, ports.weights.read(net))
    before = ports.weights.read(flax_net)
    module, variables = ports.create(OPTION_A_NET, "linen", seed=None)
    variables = ports.weights.write((module, variables), ports.weights.read(net))
    parity.assert_parity(net, flax_net, (module, variables), steps=1)
    after = ports.weights.read(flax_net)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert {array.dtype.name for array in after.values()} == {"float32", "int64"}


def test_features_are_compared() -> None:
    report = parity.check_network(get(BASIC_NET, features_only=True), ports=["linen"], steps=1)
    assert report, str(report)


def test_not_finite_on_one_side_is_a_mismatch(pair: tuple[Any, Any]) -> None:
    torch_net, _ = pair
    wrong = twin(torch_net, "nnx")
    with jax.enable_x64(True):
        wrong.fc.bias.set_value(wrong.fc.bias.get_value().at[1].set(jnp.nan))
    report = parity.check(torch_net, wrong, steps=0)
    assert report.exit_code == 1
    row = report.models[0].rows[0]
    assert (row.quantity, row.distance) == ("output.eval", np.inf)
    assert report.to_json()["models"][0]["rows"][0]["distance"] is None


def test_a_bound_that_decides_nothing_is_not_a_pass() -> None:
    """A BatchNorm divides by next to nothing: a 1x1 convolution hands it numbers that are almost equal."""
    weights = ports.weights.read(reference(BOTTLENECK_NET))
    weights["bn1.weight"] = weights["bn1.weight"] * 1e-6
    weights["bn1.bias"] = np.abs(weights["bn1.bias"]) + 1e3
    weights["layer1.0.bn1.weight"] = weights["layer1.0.bn1.weight"] * 1e6
    report = parity.check_network(BOTTLENECK_NET, ports=["nnx"], weights=weights, steps=0)
    assert report.exit_code == 2, str(report)
    assert "cannot tell: output.train" in str(report)
    assert "rounding grows most at layer1.0.bn1" in str(report)


BAD = {
    "no-candidate": (lambda net, port: (net,), {}, "alone"),
    "name-and-live": (lambda net, port: ("resnet18", port), {}, "live"),
    "port-twice-torch": (lambda net, port: (net, net), {}, "expected an nnx.Module"),
    "weights-with-live": (lambda net, port: (net, port), {"weights": {}}, "weights: only for a named network"),
    "batch": (lambda net, port: (net, port), {"batch": 0}, "batch"),
    "steps": (lambda net, port: (net, port), {"steps": -1}, "steps"),
    "unknown-port": (lambda net, port: ("resnet18",), {"ports": ["keras"]}, "unknown port"),
    "one-value-a-channel": (lambda net, port: (net, port), {"batch": 1, "image_size": (2, 2)}, "one value a channel"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_question_that_cannot_be_put(case: str, pair: tuple[Any, Any]) -> None:
    arguments, options, said = BAD[case]
    with pytest.raises(UserError, match=said):
        parity.check(*arguments(*pair), **options)


def test_nan_in_the_weights() -> None:
    weights = ports.weights.read(reference(OPTION_A_NET))
    weights["fc.bias"][2] = np.nan
    with pytest.raises(UserError, match=r"fc\.bias has 1 of 6 numbers"):
        parity.check_network(OPTION_A_NET, weights=weights)
