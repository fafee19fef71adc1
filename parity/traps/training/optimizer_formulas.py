"""PyTorch's optimizers with another setting or another formula.

`setting` and `formula` return a function that turns a training into the training with a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.numerics.quantities import Training

Params = Mapping[str, Any]
Held = dict[str, Tensor]
# From gradient, parameter, own tensors, the optimizer's options and the number of this step (from 1) to the update.
Rule = Callable[[Tensor, Tensor, Held, Mapping[str, Any], int], Tensor]


def made(training: Training, params: Params) -> tuple[Any, Any]:
    """Optimizer and scheduler (or None)."""
    found = training.optimizer(params)
    return found if isinstance(found, tuple) else (found, None)


def setting(**values: Any) -> Callable[[Training], Training]:
    """Other options of the optimizer."""

    def plant(training: Training) -> Training:
        def make(params: Params) -> Any:
            optimizer, scheduler = made(training, params)
            for group in optimizer.param_groups:
                group.update({name: value for name, value in values.items() if name in group})
            return optimizer, scheduler

        return replace(training, optimizer=make)

    return plant


class FormulaOptimizer:
    """An optimizer with another formula, the same options and the same schedule."""

    def __init__(self, optimizer: Any, rule: Rule) -> None:
        self.optimizer, self.rule = optimizer, rule
        self.held: dict[Any, Held] = {}
        self.count = 0

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer._opt_called = True  # a scheduler warns if its own optimizer has made no step
        for hook in [*self.optimizer._optimizer_step_pre_hooks.values()]:
            hook(self.optimizer, (), {})
        self.count += 1
        for group in self.optimizer.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.add_(self.rule(p.grad, p.clone(), self.held.setdefault(p, {}), group, self.count))


def formula(rule: Rule) -> Callable[[Training], Training]:
    """Another update."""

    def plant(training: Training) -> Training:
        def make(params: Params) -> Any:
            optimizer, scheduler = made(training, params)
            return FormulaOptimizer(optimizer, rule), scheduler

        return replace(training, optimizer=make)

    return plant


def sgd(decay: str = "gradient", momentum: str = "sum", rate: str = "behind") -> Rule:
    """SGD.

    Args:
        decay: added to the `gradient`, to the `update`, or `unscaled` by the learning rate to the change itself.
        momentum: a `sum`; an `average`; a `corrected` average; `dampened` from the first gradient on.
        rate: whether it is applied after (`behind`) the momentum or `before` it.
    """

    def rule(g: Tensor, p: Tensor, held: Held, group: Mapping[str, Any], count: int) -> Tensor:
        lr, mu, wd = group["lr"], group["momentum"], group["weight_decay"]
        g = g + wd * p if decay == "gradient" else g
        g = lr * g if rate == "before" else g
        new = g
        if mu:
            part = {"sum": 1.0 if "m" not in held else 1 - group["dampening"], "dampened": 1 - group["dampening"]}
            held["m"] = mu * held.get("m", torch.zeros_like(g)) + part.get(momentum, 1 - mu) * g
            new = held["m"] / (1 - mu**count) if momentum == "corrected" else held["m"]
            new = g + mu * new if group["nesterov"] else new
        new = new + wd * p if decay == "update" else new
        change = -new if rate == "before" else -lr * new
        return change - wd * p if decay == "unscaled" else change

    return rule


def adam(epsilon: str = "outside", corrected: bool = True, maximum: str = "raw", coupled: bool | None = None) -> Rule:
    """Adam and AdamW.

    Args:
        epsilon: `outside` of the root, `inside` it, or `early`: added before the correction of the bias.
        corrected: whether the averages are corrected for their start at zero.
        maximum: AMSGrad's, of the `raw` averages or of the `corrected` ones.
        coupled: whether the decay is added to the gradient.
    """

    def rule(g: Tensor, p: Tensor, held: Held, group: Mapping[str, Any], count: int) -> Tensor:
        lr, (first, second), eps, wd = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        g = g + wd * p if coupled else g
        zero = torch.zeros_like(g)
        m = held["m"] = first * held.get("m", zero) + (1 - first) * g
        v = held["v"] = second * held.get("v", zero) + (1 - second) * g * g
        bias1, bias2 = (1 - first**count, 1 - second**count) if corrected else (1.0, 1.0)
        if group["amsgrad"]:
            seen = v / bias2 if maximum == "corrected" else v
            v = held["largest"] = torch.maximum(held.get("largest", zero), seen)
            bias2 = 1.0 if maximum == "corrected" else bias2
        root = {
            "outside": lambda: (v / bias2).sqrt() + eps,
            "inside": lambda: (v / bias2 + eps).sqrt(),
            "early": lambda: (v.sqrt() + eps) / bias2**0.5,
        }[epsilon]()
        change = -lr / bias1 * m / root
        return change if coupled else change - lr * wd * p

    def as_given(g: Tensor, p: Tensor, held: Held, group: Mapping[str, Any], count: int) -> Tensor:
        decoupled = group.get("decoupled_weight_decay", False)
        return adam(epsilon, corrected, maximum, not decoupled)(g, p, held, group, count)

    return as_given if coupled is None else rule


def rmsprop(epsilon: str = "outside", rate: str = "behind", start: float = 0.0, alpha: float | None = None) -> Rule:
    """RMSprop, with the learning rate after the momentum (`behind`) or `before` it; averages begin at `start`."""
    other = alpha

    def rule(g: Tensor, p: Tensor, held: Held, group: Mapping[str, Any], _: int) -> Tensor:
        lr, alpha, eps = group["lr"], group["alpha"] if other is None else other, group["eps"]
        g = g + group["weight_decay"] * p
        v = held["v"] = alpha * held.get("v", torch.full_like(g, start)) + (1 - alpha) * g * g
        if group["centered"]:
            mean = held["mean"] = alpha * held.get("mean", torch.zeros_like(g)) + (1 - alpha) * g
            v = v - mean * mean
        change = g / ((v + eps).sqrt() if epsilon == "inside" else v.sqrt() + eps)
        change = lr * change if rate == "before" else change
        if group["momentum"]:
            change = held["m"] = group["momentum"] * held.get("m", torch.zeros_like(g)) + change
        return -change if rate == "before" else -lr * change

    return rule


def adagrad(epsilon: str = "outside", start: float | None = None, eps: float | None = None) -> Rule:
    """Adagrad, with sums that begin at `start`, and another epsilon."""

    def rule(g: Tensor, p: Tensor, held: Held, group: Mapping[str, Any], count: int) -> Tensor:
        g = g + group["weight_decay"] * p
        begin = group["initial_accumulator_value"] if start is None else start
        total = held["sum"] = held.get("sum", torch.full_like(g, begin)) + g * g
        added = group["eps"] if eps is None else eps
        root = (total + added).sqrt() if epsilon == "inside" else total.sqrt() + added
        return -group["lr"] / (1 + (count - 1) * group["lr_decay"]) * g / root

    return rule
