"""PyTorch's training with another decay, schedule, clipping or accumulation.

Each function turns a training into the training with a mistake, or returns a function that does so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from parity.numerics.quantities import Training
from parity.traps.training.optimizer_formulas import Params, made, setting


class All:
    """Several optimizers or schedulers as one."""

    def __init__(self, *parts: Any) -> None:
        self.parts = [part for part in parts if part is not None]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def decay_on_weights_only(training: Training) -> Training:
    """No decay of parameters with one dimension: biases, and norms' parameters."""

    def make(params: Params) -> Any:
        kinds = ({n: p for n, p in params.items() if (p.ndim > 1) is matrix} for matrix in (True, False))
        plain = setting(weight_decay=0.0)(training)
        both = [made(which, part) for which, part in zip((training, plain), kinds, strict=True) if part]
        optimizers, schedulers = zip(*both, strict=True)
        return All(*optimizers), All(*schedulers)

    return replace(training, optimizer=make)


def decay_on_all(training: Training) -> Training:
    """Every group decays as the one that decays most."""

    def make(params: Params) -> Any:
        optimizer, scheduler = made(training, params)
        most = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group.update({"weight_decay": most} if "weight_decay" in group else {})
        return optimizer, scheduler

    return replace(training, optimizer=make)


def scheduled(change: Callable[[Any, Any], Any]) -> Callable[[Training], Training]:
    """Another schedule: from optimizer and scheduler to what is stepped."""

    def plant(training: Training) -> Training:
        def make(params: Params) -> Any:
            optimizer, scheduler = made(training, params)
            return optimizer, None if scheduler is None else change(optimizer, scheduler)

        return replace(training, optimizer=make)

    return plant


class Late:
    """A scheduler one step behind."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.count = scheduler, 0

    def step(self) -> None:
        self.count += 1
        if self.count > 1:
            self.scheduler.step()


class LateFromZero:
    """A scheduler one step behind, whose first rate is zero."""

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self.optimizer, self.scheduler, self.count = optimizer, scheduler, 0
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0

    def step(self) -> None:
        if not self.count:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
        else:
            self.scheduler.step()
        self.count += 1


class Staying:
    """A cosine that stays where it is at its end."""

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self.optimizer, self.scheduler = optimizer, scheduler

    def step(self) -> None:
        self.scheduler.step()
        if self.scheduler.last_epoch > getattr(self.scheduler, "T_max", float("inf")):
            for group in self.optimizer.param_groups:
                group["lr"] = self.scheduler.eta_min


def early(optimizer: Any, scheduler: Any) -> Any:
    optimizer._opt_called = True
    scheduler.step()
    return scheduler


def prepared(change: Callable[[dict[str, Any], float], None]) -> Callable[[Training], Training]:
    """Another clipping: from the parameters that have gradients, and the norm."""

    def plant(training: Training) -> Training:
        def prepare(params: Params) -> None:
            if training.clip_grad_norm is not None:
                change({n: p for n, p in params.items() if p.grad is not None}, training.clip_grad_norm)

        return replace(training, prepare=prepare)

    return plant


def clip_without_epsilon(params: dict[str, Any], largest: float) -> None:
    norm = torch.stack([p.grad.norm() for p in params.values()]).norm()
    for p in params.values():
        p.grad.mul_(torch.clamp(largest / norm, max=1.0))


def clip_each(params: dict[str, Any], largest: float) -> None:
    for p in params.values():
        torch.nn.utils.clip_grad_norm_([p], largest)


def clip_values(params: dict[str, Any], largest: float) -> None:
    torch.nn.utils.clip_grad_value_([*params.values()], largest)


def averaged(training: Training) -> Training:
    """The average of accumulated gradients instead of their sum."""

    def prepare(params: Params) -> None:
        for p in (p for p in params.values() if p.grad is not None):
            p.grad.div_(training.accumulate)
        training.prepare(params)

    return replace(training, prepare=prepare)


def matrices_only(training: Training) -> Training:
    """Biases and norms' parameters stay as they are."""

    def prepare(params: Params) -> None:
        training.prepare(params)
        for p in (p for p in params.values() if p.ndim < 2):
            p.grad = None

    return replace(training, prepare=prepare)


def idle_trained(training: Training) -> Training:
    """A gradient of zeros for a parameter that has none."""

    def prepare(params: Params) -> None:
        for p in (p for p in params.values() if p.grad is None):
            p.grad = torch.zeros_like(p)
        training.prepare(params)

    return replace(training, prepare=prepare)
