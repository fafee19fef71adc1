"""The training that a check compares: an optimizer that `ports.optimizers` knows by name, or the caller's own.

The learning rate falls at every step: a constant one could not show a schedule that is off by one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax
import torch

from parity.numerics.quantities import Probe, Training
from parity.running import pytorch as run_pytorch
from ports import optim, schedules
from ports.errors import UserError
from ports.optimizers import VARIANTS, Variant

DECAY = 0.8
# The fraction of its size by which a step may move a parameter: larger steps let rounding grow from step to step.
MOVES = 1e-3


# From the reference and its probe to the training.
Maker = Callable[[torch.nn.Module, Probe], Training]


@dataclass(frozen=True)
class TrainingPlan:
    """The caller's settings of the training.

    Attributes:
        steps: of the optimizer.
        optimizer: a name in `ports.optimizers.VARIANTS`; or from PyTorch's parameters to their optimizer, or to
            (optimizer, scheduler), as they are written in a training script; then `tx` is the port's.
        tx: the port's transform; by default one that computes the same as PyTorch's.
        clip_grad_norm: the norm to which PyTorch clips its gradients before a step.
        accumulate: the passes whose gradients PyTorch sums before a step.

    Raises:
        UserError: an unknown name, a custom optimizer without `tx`, an option out of range.
    """

    steps: int
    optimizer: str | Callable[..., Any] = "sgd"
    tx: Any = None
    clip_grad_norm: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        name = self.optimizer
        if isinstance(name, str) and name not in VARIANTS:
            near = difflib.get_close_matches(name, VARIANTS, 1, 0)[0]
            raise UserError(f"optimizer: got {name!r}, expected one of {', '.join(VARIANTS)}; {near} is nearest")
        if callable(name) and self.tx is None:
            raise UserError("optimizer: got PyTorch's alone, expected tx= besides: the port's optax transform")
        if self.accumulate < 1 or (self.clip_grad_norm is not None and not self.clip_grad_norm > 0):
            wrong = "accumulate" if self.accumulate < 1 else "clip_grad_norm"
            raise UserError(f"{wrong}={getattr(self, wrong)}: expected 1 or more passes, and a norm above 0")

    def prepare(self, params: Mapping[str, Any]) -> None:
        """Clip PyTorch's gradients."""
        if self.clip_grad_norm is not None:
            grads = [p for p in params.values() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(grads, self.clip_grad_norm)


def make(reference: torch.nn.Module, fed: Probe, plan: TrainingPlan) -> Training:
    """Return the training that is compared."""
    optimizer, tx = plan.optimizer, plan.tx
    if callable(optimizer):
        return _training(plan, lambda params: optimizer([*params.values()]), tx)
    variant = VARIANTS[optimizer]
    rate = _adaptive_rate(reference) if variant.adaptive else run_pytorch.learning_rate(reference, fed, MOVES)

    def in_torch(params: Mapping[str, Any]) -> Any:
        kind = _uncompiled(getattr(torch.optim, variant.form.torch))
        made = kind([*params.values()], lr=rate, **variant.options)
        return made, torch.optim.lr_scheduler.ExponentialLR(made, DECAY)

    return _training(
        plan, in_torch, transform(variant, rate, plan.clip_grad_norm, plan.accumulate) if tx is None else tx
    )


@functools.cache
def _uncompiled(kind: Any) -> Any:
    """Return PyTorch's class without the wrappers that import `torch.compile`, which takes 1.5 seconds."""
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


def _training(plan: TrainingPlan, optimizer: Callable[[Mapping[str, Any]], Any], tx: Any) -> Training:
    return Training(
        plan.steps,
        optimizer,
        tx,
        clip_grad_norm=plan.clip_grad_norm,
        accumulate=plan.accumulate,
        own=plan.tx is not None,
        prepare=plan.prepare,
    )


def _adaptive_rate(net: torch.nn.Module) -> float:
    """Return `MOVES` times the smallest root mean square of a parameter's numbers."""
    params = [*net.parameters()]
    sizes = zip(params, run_pytorch.sizes(params, MOVES), strict=True)
    return MOVES * min((size / p.numel() ** 0.5 for p, size in sizes if size > 0), default=1.0)


def transform(
    variant: Variant, rate: float, clip_grad_norm: float | None = None, accumulate: int = 1
) -> optax.GradientTransformation:
    """The port's side: sum gradients, clip them, and use them as PyTorch does."""
    tx = getattr(optim, variant.form.transform)(schedules.exponential_lr(rate, DECAY), **variant.options)
    if clip_grad_norm is not None:
        tx = optax.chain(optim.clip_grad_norm(clip_grad_norm), tx)
    return optim.accumulate(tx, accumulate) if accumulate > 1 else tx
