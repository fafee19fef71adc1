"""A family names its own loss: the check compares it and its gradients, and finds one that differs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from small import OPTION_A_NET

import parity
from ports import families, losses, torch_losses
from ports.objective import CLASSIFICATION, Input, Objective
from ports.resnet.family import RESNET_FAMILY

pytestmark = pytest.mark.usefixtures("quick")


def in_torch(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean()


def in_flax(outputs: Any, targets: Any) -> Any:
    return jnp.square(outputs - targets).mean()


def summed_in_flax(outputs: Any, targets: Any) -> Any:
    return jnp.square(outputs - targets).sum()


def regression(flax: str) -> Objective:
    targets = lambda spec, batch, size: Input((batch, spec.num_classes))  # noqa: E731
    return Objective(targets, f"{__name__}:in_torch", f"{__name__}:{flax}")


@pytest.mark.sample(1)
@pytest.mark.parametrize(("flax", "right"), [("in_flax", True), ("summed_in_flax", False)])
def test_the_loss_of_a_family_is_compared(flax: str, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    family = dataclasses.replace(RESNET_FAMILY, objective=regression(flax))
    others = tuple(other for other in families.FAMILIES if other is not RESNET_FAMILY)
    monkeypatch.setattr(families, "FAMILIES", (family, *others))
    report = parity.check_network(OPTION_A_NET, ports=("nnx",), steps=1)
    assert report.ok is right, str(report)
    assert ("loss" in {row.quantity for row in report.models[0].rows if not row.ok}) is not right


def test_classification_is_the_same_in_both_frameworks() -> None:
    logits, labels = [[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]], [2, 0]
    expected = torch_losses.classification(torch.tensor(logits), torch.tensor(labels))
    assert float(losses.classification(jnp.array(logits), jnp.array(labels))) == pytest.approx(float(expected))
    maps = [torch.tensor(logits), torch.tensor(logits[:1])]
    expected = torch_losses.classification(maps, torch.tensor(labels))
    found = losses.classification([jnp.array(one.numpy()) for one in maps], jnp.array(labels))
    assert float(found) == pytest.approx(float(expected))
    assert CLASSIFICATION.in_torch() is torch_losses.classification
    assert CLASSIFICATION.in_flax() is losses.classification
