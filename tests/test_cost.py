"""What mistakes cost: how far outputs, predictions, gradients and updates are from the reference's."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.reports.html import page
from parity.reports.report import Cost
from parity.verdict.cost import CostMeter

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((7, 4))
ZERO, LOGITS = np.zeros((2, 3)), np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])


def measured(*stream: tuple[str, dict[str, np.ndarray]], **reference: Any) -> Cost:
    meter = CostMeter("nnx", {name.replace("_", "."): tensors for name, tensors in reference.items()})
    assert [*meter.passing(stream)] == [*stream]
    return meter.cost


def test_a_flip_and_a_divergence_by_hand() -> None:
    other = np.array([[0.0, 3.0, 2.0], [3.0, 1.0, 0.0]])
    cost = measured(("output.eval", {"output": other}), output_eval={"output": LOGITS})
    p, q = (np.exp(row) / np.exp(row).sum() for row in (LOGITS[0], other[0]))
    assert (cost.flips, cost.predictions) == (1, 2)
    assert cost.divergence == pytest.approx(sum(p * np.log(p / q)) / 2)
    assert cost.output == pytest.approx(2 / math.sqrt(15))
    assert (cost.cosine, cost.drift, cost.steps) == (None, None, None)


def test_gradients_and_updates_are_taken_as_a_whole() -> None:
    ours = {"a": np.array([3.0, 0.0]), "b": np.array(4.0)}
    theirs = {"a": np.array([0.0, 3.0]), "b": np.array(4.0)}

    def after(step: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {f"{name}@{step}": np.asarray(step * array) for name, array in arrays.items()}

    reference = after(1, ours) | after(3, ours)
    parts = [("training.parameter", after(step, theirs)) for step in (1, 3)]
    cost = measured(("gradient.parameter", theirs), *parts, gradient_parameter=ours, training_parameter=reference)
    assert cost.cosine == pytest.approx(16 / 25)
    assert (cost.drift, cost.steps) == (pytest.approx(math.sqrt(18) / 5), 3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"output": LOGITS}, {"output": LOGITS[:1]}),
        ({"output": LOGITS}, {"output": LOGITS * np.nan}),
        ({"output": ZERO[:, :0]}, {"output": ZERO[:, :0]}),
        ({"output": LOGITS}, {}),
    ],
    ids=["shape", "nan", "empty", "absent"],
)
def test_what_cannot_be_measured_is_none(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert measured(("output.eval", theirs), output_eval=ours) == Cost("nnx")
    assert Cost("nnx").said == ""


@pytest.mark.parametrize(
    ("outputs", "predictions"),
    [
        ({"output": np.ones((2, 5, 3))}, 10),
        ({"output": np.ones((2, 3, 4, 4))}, None),
        ({"output": np.ones((2, 1))}, None),
        ({"output": np.ones((2, 3), int)}, None),
        ({"output.0": np.ones((2, 3)), "output.1": np.ones((2, 3))}, None),
        ({"output.logits": np.ones((2, 3)), "output.state": np.ones((2, 3))}, 2),
    ],
    ids=["words", "image", "number", "whole", "two", "named"],
)
def test_which_outputs_are_logits(outputs: dict[str, np.ndarray], predictions: int | None) -> None:
    assert measured(("output.eval", outputs), output_eval=outputs).predictions == predictions


class Net(nnx.Module):
    def __init__(self, activation: Any) -> None:
        self.a, self.b = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(self.activation(self.a(x)))


def test_a_report_tells_the_cost_and_the_size() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double()
    right, wrong = (parity.move(model, Net(activation), X) for activation in (nnx.relu, jnp.abs))
    assert parity.check(model, right, X, steps=3).models[0].costs == ()
    report = parity.check(model, wrong, X, steps=3)
    (cost,), (finding,) = report.models[0].costs, report.models[0].findings

    with torch.no_grad():
        hidden = model[0](torch.as_tensor(X))
        ours, theirs = model[2](hidden.relu()).numpy(), model[2](hidden.abs()).numpy()
    assert cost.output == pytest.approx(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    assert (cost.flips, cost.predictions) == ((ours.argmax(-1) != theirs.argmax(-1)).sum(), 7)
    assert cost.cosine is not None
    assert -1 <= cost.cosine < 0.999
    assert cost.drift is not None
    assert (cost.drift > 1e-3, cost.steps) == (True, 3)
    size = float((hidden.abs() - hidden.relu()).norm() / hidden.relu().norm())
    assert finding.size == pytest.approx(size)

    for text in (str(report), page(report)):
        assert cost.said in text
        assert f"(off by {size:.1e} there)" in text
    entry = json.loads(json.dumps(report.to_json()))["models"][0]
    assert entry["costs"][0]["flips"] == cost.flips
    assert entry["findings"][0]["size"] == pytest.approx(size)
