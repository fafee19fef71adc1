"""Schedules step by step against `torch.optim.lr_scheduler`; and optax's, which differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from torch.optim import lr_scheduler

from ports import UserError, schedules

LR, STEPS = 0.3, 30
Torch = Callable[[torch.optim.Optimizer], Any]


def warm_up(optimizer: torch.optim.Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(optimizer, 20)]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


CASES: dict[str, tuple[Torch, schedules.Schedule]] = {
    "step": (lambda o: lr_scheduler.StepLR(o, 7, 0.5), schedules.step_lr(LR, 7, 0.5)),
    "multi-step": (
        lambda o: lr_scheduler.MultiStepLR(o, [3, 8, 8, 20], 0.3),
        schedules.multi_step_lr(LR, [3, 8, 8, 20], 0.3),
    ),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), schedules.exponential_lr(LR, 0.9)),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 0.01), schedules.cosine_annealing_lr(LR, 20, 0.01)),
    "linear": (lambda o: lr_scheduler.LinearLR(o, 0.1, 0.9, 6), schedules.linear_lr(LR, 0.1, 0.9, 6)),
    "constant": (lambda o: lr_scheduler.ConstantLR(o, 0.1, 4), schedules.constant_lr(LR, 0.1, 4)),
    "warm-up": (
        warm_up,
        schedules.sequential_lr([schedules.linear_lr(LR, 0.1), schedules.cosine_annealing_lr(LR, 20)], [5]),
    ),
}


def in_torch(make: Torch) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def in_jax(schedule: Callable[[Any], Any]) -> list[float]:
    with jax.enable_x64(True):
        return [float(schedule(np.int32(count))) for count in range(STEPS)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedule_is_pytorchs(name: str) -> None:
    make, schedule = CASES[name]
    np.testing.assert_allclose(in_jax(schedule), in_torch(make), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cosine", optax.cosine_decay_schedule(LR, 20, 0.01 / LR)),
        ("step", lambda count: schedules.step_lr(LR, 7, 0.5)(count + 1)),
        ("warm-up", optax.warmup_cosine_decay_schedule(0.1 * LR, LR, 5, 20)),
    ],
    ids=["cosine-stays-down", "off-by-one", "warm-up-counted-in"],
)
def test_known_mistakes_are_not(name: str, wrong: Any) -> None:
    assert np.abs(np.subtract(in_jax(wrong), in_torch(CASES[name][0]))).max() > 1e-3


def test_epochs() -> None:
    rates = in_jax(schedules.every(5, schedules.step_lr(LR, 2)))
    assert np.allclose(rates[:20], [LR] * 10 + [LR / 10] * 10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "max"},
        {"threshold_mode": "abs", "threshold": 0.05},
        {"cooldown": 2, "patience": 1},
        {"min_lr": 0.05},
    ],
)
def test_plateau_is_pytorchs(options: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    options = {"patience": 2, "factor": 0.5, **options}
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    ours = schedules.ReduceLROnPlateau(LR, **options)
    for metric in np.random.default_rng(0).uniform(0.5, 1.5, 60):
        theirs.step(metric)
        assert ours.step(metric) == optimizer.param_groups[0]["lr"]
    assert ours.lr < LR


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.step_lr(0.1, 0),
        lambda: schedules.cosine_annealing_lr(0.1, 0),
        lambda: schedules.sequential_lr([schedules.step_lr(0.1, 2)], [3]),
        lambda: schedules.ReduceLROnPlateau(0.1, mode="least"),
        lambda: schedules.ReduceLROnPlateau(0.1, factor=1.0),
    ],
)
def test_options_out_of_range(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match="expected"):
        make()
