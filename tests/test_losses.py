"""`ports.losses` against PyTorch, gradients too; and what other formulas give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ports import UserError, losses

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.standard_normal((6, 5)), RNG.integers(0, 5, 6)
IGNORED = np.where(np.arange(6) % 3 == 0, -100, LABELS)
WEIGHT = RNG.uniform(0.5, 2, 5)


def in_torch(labels: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    logits = torch.tensor(LOGITS, requires_grad=True)
    options = {n: torch.tensor(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    loss = F.cross_entropy(logits, torch.tensor(labels), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach().numpy(), gradient.numpy()


def in_jax(function: Any, labels: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        loss = function(jnp.array(LOGITS), jnp.array(labels), **options)
        gradient = jax.grad(lambda x: function(x, jnp.array(labels), **options).sum())(jnp.array(LOGITS))
        return np.asarray(loss), np.asarray(gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("labels", [LABELS, IGNORED], ids=["all", "ignored"])
def test_cross_entropy_is_pytorchs(labels: Any, weight: Any, smoothing: float, reduction: str) -> None:
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    for ours, theirs in zip(in_jax(losses.cross_entropy, labels, **options), in_torch(labels, **options), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def optax_mean(logits: Any, labels: Any, **_: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def unweighted_mean(logits: Any, labels: Any, weight: Any) -> Any:
    return losses.cross_entropy(logits, labels, weight=weight, reduction="none").mean()


@pytest.mark.parametrize(
    ("wrong", "labels", "options"),
    [
        (optax_mean, LABELS, {"label_smoothing": 0.1}),
        (optax_mean, IGNORED, {}),
        (unweighted_mean, LABELS, {"weight": WEIGHT}),
    ],
    ids=["no-smoothing", "ignored-label-counts", "mean-over-examples"],
)
def test_known_mistakes_are_not(wrong: Any, labels: np.ndarray, options: Any) -> None:
    got, expected = in_jax(wrong, labels, **options)[1], in_torch(labels, **options)[1]
    assert not np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)


def test_ema_is_pytorchs() -> None:
    model = torch.nn.Linear(3, 2).double()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with jax.enable_x64(True):
        average: Any = jnp.zeros((2, 3))
        for step in range(4):
            with torch.no_grad():
                model.weight += 1.0
            averaged.update_parameters(model)
            average = losses.ema(average, jnp.array(model.weight.detach().numpy()), 0.9, count=step)
    np.testing.assert_allclose(average, averaged.state_dict()["module.weight"].numpy(), rtol=1e-13)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="labels: got"):
        losses.cross_entropy(jnp.ones((2, 3)), jnp.zeros(3, int))
    with pytest.raises(UserError, match="reduction: got 'max'"):
        losses.cross_entropy(jnp.ones((2, 3)), jnp.zeros(2, int), reduction="max")
