"""Mistakes in losses as a porter makes them: PyTorch's loss, and one in JAX that is not the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

from ports import losses

from .planted import Case
from .training import mlp

RNG = np.random.default_rng(1)
CLASSES = 3
LABELS = np.array([0, 2, 1, 1, 0, 2])
IGNORED, LAST = np.where(np.arange(6) % 3 == 0, -100, LABELS), np.where(np.arange(6) % 3 == 0, -1, LABELS)
WEIGHT, TARGET = RNG.uniform(0.5, 2, CLASSES), RNG.standard_normal((6, CLASSES))
KEPT = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
SHARE, ONES = RNG.dirichlet(np.ones(CLASSES), 6), (TARGET > 0).astype(np.float64)


def row(trap: str, in_torch: Callable[[Any], Any], in_jax: Callable[[Any], Any]) -> Case:
    return Case(trap, mlp, "(the loss)", {"loss": (in_torch, in_jax), "steps": 1})


def cross_entropy(labels: np.ndarray = LABELS, weight: np.ndarray | None = None, **options: Any) -> Any:
    """In PyTorch."""
    given = {} if weight is None else {"weight": torch.from_numpy(weight)}
    return lambda y: F.cross_entropy(y, torch.from_numpy(labels), **given, **options)


def ce(y: Any, labels: np.ndarray = LABELS, **options: Any) -> Any:
    """The same in JAX."""
    return losses.cross_entropy(y, jnp.array(labels), **options)


def own_weight(y: Any) -> Any:
    weight = jnp.array(WEIGHT)[LABELS]
    return (ce(y, label_smoothing=0.1, reduction="none") * weight).sum() / weight.sum()


def indexed(y: Any) -> Any:
    return -jax.nn.log_softmax(y)[jnp.arange(6), jnp.array(LAST)].mean()


def of(function: Callable[..., Any], target: np.ndarray, **options: Any) -> Any:
    """A loss of PyTorch with a target."""
    return lambda y: function(y, torch.from_numpy(target), **options)


def square(y: Any) -> Any:
    return jnp.square(y - TARGET)


def binary(y: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(y, jnp.array(ONES))


def divergence(y: Any) -> Any:
    return SHARE * (jnp.log(SHARE) - jax.nn.log_softmax(y))


def kl(reduction: str) -> Any:
    def loss(y: Any) -> Any:
        with warnings.catch_warnings():  # PyTorch advises against `mean`
            warnings.simplefilter("ignore")
            return F.kl_div(y.log_softmax(1), torch.from_numpy(SHARE), reduction=reduction)

    return loss


def kept(y: Any) -> Any:
    losses = F.cross_entropy(y, torch.from_numpy(LABELS), reduction="none")
    mask = torch.from_numpy(KEPT)
    return (losses * mask).sum() / mask.sum()


def huber(y: Any, delta: float = 1.0) -> Any:
    return optax.huber_loss(y, jnp.array(TARGET), delta=delta).mean()


LOSSES = (
    row("loss-mean-over-padding", kept, lambda y: (ce(y, reduction="none") * KEPT).mean()),
    row("loss-class-weights-missing", cross_entropy(weight=WEIGHT), ce),
    row(
        "loss-weighted-mean-over-n",
        cross_entropy(weight=WEIGHT),
        lambda y: ce(y, weight=WEIGHT, reduction="none").mean(),
    ),
    row("loss-smoothing-missing", cross_entropy(label_smoothing=0.1), ce),
    row("loss-smoothing-weighted-by-own", cross_entropy(weight=WEIGHT, label_smoothing=0.1), own_weight),
    row("loss-ignored-counted", cross_entropy(IGNORED), lambda y: ce(y, IGNORED, reduction="none").mean()),
    row("loss-ignored-wraps", cross_entropy(LAST, ignore_index=-1), indexed),
    row("loss-softmax-twice", cross_entropy(), lambda y: ce(jax.nn.softmax(y))),
    row(
        "loss-sigmoid-twice",
        of(F.binary_cross_entropy_with_logits, ONES),
        lambda y: binary(jax.nn.sigmoid(y)).mean(),
    ),
    row(
        "loss-pos-weight-missing",
        of(F.binary_cross_entropy_with_logits, ONES, pos_weight=torch.tensor(2.0, dtype=torch.float64)),
        lambda y: binary(y).mean(),
    ),
    row("loss-half-square", of(F.mse_loss, TARGET), lambda y: optax.l2_loss(y, jnp.array(TARGET)).mean()),
    row("loss-sum-for-mean", of(F.mse_loss, TARGET), lambda y: square(y).sum()),
    row("loss-mean-for-sum", cross_entropy(reduction="sum"), ce),
    row("loss-summed-per-example", of(F.mse_loss, TARGET), lambda y: square(y).sum(-1).mean()),
    row("loss-kl-mean-over-numbers", kl("batchmean"), lambda y: divergence(y).mean()),
    row("loss-kl-mean-over-examples", kl("mean"), lambda y: divergence(y).sum() / 6),
    row("loss-huber-for-smooth-l1", of(F.smooth_l1_loss, TARGET, beta=0.3), lambda y: huber(y, 0.3)),
    row("loss-smooth-l1-beta-1", of(F.smooth_l1_loss, TARGET, beta=0.3), huber),
    row("loss-huber-delta-1", of(F.huber_loss, TARGET, delta=0.3), huber),
)
