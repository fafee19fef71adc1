"""PyTorch's learning-rate schedules as functions of the number of steps done, for `ports.optim` and optax.

    tx = ports.optim.sgd(cosine_annealing_lr(0.1, T_max=100), momentum=0.9)

A schedule gets the count of steps done: 0 at the first step, when PyTorch uses the rate from before the first
`scheduler.step()`. A scheduler that is stepped once an epoch gets `every=steps_per_epoch`. Names and arguments are
those of `torch.optim.lr_scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from ports.errors import UserError

Schedule = Callable[[Any], Any]


def step_lr(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """`StepLR`: the rate is multiplied by gamma after every `step_size` steps."""
    _require("step_lr: step_size", step_size, 1)
    return lambda count: lr * gamma ** _real(count // step_size)


def multi_step_lr(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`MultiStepLR`: the rate is multiplied by gamma at every milestone; a repeated milestone counts twice."""
    return lambda count: lr * gamma ** _real(sum(jnp.where(count >= m, 1, 0) for m in milestones))


def exponential_lr(lr: float, gamma: float) -> Schedule:
    """`ExponentialLR`: the rate is multiplied by gamma after every step."""
    return lambda count: lr * gamma ** _real(count)


def cosine_annealing_lr(lr: float, T_max: int, eta_min: float = 0.0) -> Schedule:
    """`CosineAnnealingLR`: half a cosine down to `eta_min` in `T_max` steps, then up again (optax's stays).

    Source: Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    _require("cosine_annealing_lr: T_max", T_max, 1)
    return lambda count: eta_min + (lr - eta_min) * (1 + jnp.cos(math.pi * _real(count) / T_max)) / 2


def linear_lr(lr: float, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5) -> Schedule:
    """`LinearLR`: the warm-up from lr x start_factor to lr x end_factor in `total_iters` steps."""
    _require("linear_lr: total_iters", total_iters, 1)

    def schedule(count: Any) -> Any:
        part = jnp.minimum(_real(count), total_iters) / total_iters
        return lr * (start_factor + (end_factor - start_factor) * part)

    return schedule


def constant_lr(lr: float, factor: float = 1 / 3, total_iters: int = 5) -> Schedule:
    """`ConstantLR`: lr x factor for `total_iters` steps, then lr."""
    return lambda count: lr * jnp.where(count < total_iters, factor, 1.0)


def sequential_lr(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """`SequentialLR`: one schedule after the other; each counts from its own beginning.

    Raises:
        UserError: the number of milestones is not one less than the number of schedules.
    """
    if len(milestones) != len(schedules) - 1:
        raise UserError(
            f"sequential_lr: got {len(schedules)} schedules and {len(milestones)} milestones, expected one fewer"
        )

    def schedule(count: Any) -> Any:
        rate = schedules[0](count)
        for begin, following in zip(milestones, schedules[1:], strict=True):
            rate = jnp.where(count >= begin, following(jnp.maximum(count - begin, 0)), rate)
        return rate

    return schedule


def every(steps: int, schedule: Schedule) -> Schedule:
    """A scheduler that is stepped after every `steps` steps of the optimizer: an epoch."""
    _require("every: steps", steps, 1)
    return lambda count: schedule(count // steps)


@dataclass
class ReduceLROnPlateau:
    """`ReduceLROnPlateau`: the rate falls if a metric has not improved for more than `patience` calls of `step`.

    It depends on measurements and runs outside of jit: give its `lr` to the optimizer with
    `optax.inject_hyperparams`, or as an argument of the step.
    """

    lr: float
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    best: float = field(init=False)
    num_bad_epochs: int = field(default=0, init=False)
    cooldown_counter: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, known in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"ReduceLROnPlateau: {name}: got {getattr(self, name)!r}, expected {' or '.join(known)}"
                )
        if not 0 < self.factor < 1:
            raise UserError(f"ReduceLROnPlateau: factor: got {self.factor}, expected between 0 and 1")
        self.best = math.inf if self.mode == "min" else -math.inf

    def step(self, metric: float) -> float:
        """Take a metric; return the rate to use from now on."""
        metric = float(metric)
        if self._better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            new = max(self.lr * self.factor, self.min_lr)
            self.lr = new if self.lr - new > self.eps else self.lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        return self.lr

    def _better(self, metric: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        margin = self.threshold * (self.best if self.threshold_mode == "rel" else 1.0)
        return (
            sign * metric > sign * self.best + margin if math.isfinite(self.best) else sign * metric > sign * self.best
        )


def _real(count: Any) -> Any:
    """Counts as floating-point numbers of the widest type that is on."""
    return jnp.asarray(count, float)


def _require(what: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{what}: got {value}, expected {least} or more")
