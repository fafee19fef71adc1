"""The optimizers that can be compared by name: PyTorch's with its options, and the same from `ports.optim`.

The learning rate falls at every step: a constant one could not show a schedule that is off by one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax
import torch

from parity.numerics.quantities import Probe, Training
from parity.running import pytorch as run_pytorch
from ports import optim, schedules
from ports.errors import UserError

DECAY = 0.8
# The part of its size that a step may move a parameter by: larger steps let rounding grow from step to step.
MOVES = 1e-3


# From the reference and its probe to the training.
Maker = Callable[[torch.nn.Module, Probe], Training]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of `torch.optim` and its counterpart, with options that matter in three steps.

    Attributes:
        adaptive: whether a step is as large as the learning rate, whatever the gradient.
    """

    torch: Callable[..., torch.optim.Optimizer]
    optax: Callable[..., optax.GradientTransformation]
    adaptive: bool = False


def _row(torch: Any, optax: Any, adaptive: bool = False, **options: Any) -> Optimizer:
    return Optimizer(partial(torch, **options), partial(optax, **options), adaptive)


OPTIMIZERS = {
    "sgd": _row(torch.optim.SGD, optim.sgd, momentum=0.9, weight_decay=5e-4),
    "nesterov": _row(torch.optim.SGD, optim.sgd, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "dampened": _row(torch.optim.SGD, optim.sgd, momentum=0.9, weight_decay=5e-4, dampening=0.5),
    "adam": _row(torch.optim.Adam, optim.adam, adaptive=True, weight_decay=5e-4),
    "amsgrad": _row(torch.optim.Adam, optim.adam, adaptive=True, amsgrad=True),
    "adamw": _row(torch.optim.AdamW, optim.adamw, adaptive=True, weight_decay=5e-2),
    "rmsprop": _row(torch.optim.RMSprop, optim.rmsprop, adaptive=True, momentum=0.9, weight_decay=5e-4),
    "adagrad": _row(torch.optim.Adagrad, optim.adagrad, adaptive=True, weight_decay=5e-4),
}


def require(optimizer: str | Callable[..., Any], tx: Any = None) -> None:
    """Raises where an optimizer cannot be compared.

    Raises:
        UserError: an unknown name, an optimizer of one's own without `tx`.
    """
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        near = difflib.get_close_matches(optimizer, OPTIMIZERS, 1, 0)[0]
        raise UserError(f"optimizer: got {optimizer!r}, expected one of {', '.join(OPTIMIZERS)}; {near} is nearest")
    if callable(optimizer) and tx is None:
        raise UserError("optimizer: got PyTorch's alone, expected tx= besides: the port's optax transform")


def make(
    reference: torch.nn.Module,
    fed: Probe,
    steps: int,
    optimizer: str | Callable[..., Any] = "sgd",
    tx: Any = None,
    clip_grad_norm: float | None = None,
    accumulate: int = 1,
) -> Training:
    """The training from what the caller of a check says.

    Args:
        optimizer: a name in `OPTIMIZERS`; or from PyTorch's parameters to their optimizer, or to (optimizer,
            scheduler), as they are written in a training script; then `tx` is the port's.
        tx: the port's transform; by default what PyTorch's computes.

    Raises:
        UserError: an unknown name, an optimizer of one's own without `tx`, an option out of range.
    """
    if accumulate < 1 or (clip_grad_norm is not None and not clip_grad_norm > 0):
        got = f"accumulate={accumulate}" if accumulate < 1 else f"clip_grad_norm={clip_grad_norm}"
        raise UserError(f"{got}: expected 1 or more passes, and a norm above 0")

    def prepare(params: Mapping[str, Any]) -> None:
        if clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for p in params.values() if p.grad is not None], clip_grad_norm)

    common = {"clip_grad_norm": clip_grad_norm, "accumulate": accumulate, "own": tx is not None, "prepare": prepare}
    require(optimizer, tx)
    if callable(optimizer):
        return Training(steps, lambda params: optimizer([*params.values()]), tx, **common)
    row = OPTIMIZERS[optimizer]
    rate = _adaptive_rate(reference) if row.adaptive else run_pytorch.learning_rate(reference, fed, MOVES)

    def in_torch(params: Mapping[str, Any]) -> Any:
        made = row.torch([*params.values()], lr=rate)
        return made, torch.optim.lr_scheduler.ExponentialLR(made, DECAY)

    tx = transform(row, rate, clip_grad_norm, accumulate) if tx is None else tx
    return Training(steps, in_torch, tx, **common)


def _adaptive_rate(net: torch.nn.Module) -> float:
    """Return `MOVES` times the smallest root mean square of a parameter's numbers."""
    params = [*net.parameters()]
    sizes = zip(params, run_pytorch.sizes(params, MOVES), strict=True)
    return MOVES * min((size / p.numel() ** 0.5 for p, size in sizes if size > 0), default=1.0)


def transform(
    row: Optimizer, rate: float, clip_grad_norm: float | None = None, accumulate: int = 1
) -> optax.GradientTransformation:
    """The port's side: gradients are summed, clipped, and taken as PyTorch takes them."""
    tx = row.optax(schedules.exponential_lr(rate, DECAY))
    if clip_grad_norm is not None:
        tx = optax.chain(optim.clip_grad_norm(clip_grad_norm), tx)
    return optim.accumulate(tx, accumulate) if accumulate > 1 else tx
