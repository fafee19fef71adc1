"""Mistakes of training as a porter makes them: PyTorch's optimizer, and an optax transform that is not the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from ports import optim, schedules

from .planted import Case, moved

LR, GAMMA, WD, CLIP, T_MAX = 0.02, 0.8, 0.05, 0.05, 3
X = np.random.default_rng(0).standard_normal((6, 5))


class Mlp(nnx.Module):
    """The port of a `torch.nn.Sequential`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.norm = nnx.Linear(5, 8, rngs=rngs), nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.down = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.norm(self.up(x))))


def mlp() -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    return moved(model, Mlp(nnx.Rngs(0)), X)


class Spare(nn.Module):
    """A model with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.spare, self.down = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.down(torch.tanh(self.up(x)))


class NNXSpare(nnx.Module):
    """Its port."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.spare = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def spare() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return moved(Spare(), NNXSpare(nnx.Rngs(0)), X)


def falling(cls: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Any], Any]:
    """PyTorch's side: an optimizer whose learning rate falls at every step."""

    def make(params: Any) -> Any:
        optimizer = cls(params, lr=LR, **options)
        return optimizer, ExponentialLR(optimizer, GAMMA)

    return make


def grouped(params: Any) -> Any:
    """PyTorch's side: AdamW that decays matrices alone."""
    kept = [*params]
    groups = [
        {"params": [p for p in kept if p.ndim > 1]},
        {"params": [p for p in kept if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=LR, weight_decay=WD)
    return optimizer, ExponentialLR(optimizer, GAMMA)


def cosine(params: Any) -> Any:
    optimizer = SGD(params, lr=LR)
    return optimizer, CosineAnnealingLR(optimizer, T_MAX)


def row(trap: str, optimizer: Callable[[Any], Any], *parts: Any, make: Any = mlp, **options: Any) -> Case:
    tx = parts[0] if len(parts) == 1 else optax.chain(*parts)
    return Case(trap, make, "(the optimizer)", {"optimizer": optimizer, "tx": tx, "steps": 4, **options})


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def vectors(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim < 2, params)


def clip_each(grads: Any, _: Any) -> Any:
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / (jnp.linalg.norm(g.ravel()) + 1e-6)), grads)


def late(count: Any) -> Any:
    return FALLING(jnp.maximum(count - 1, 0))


def squares(values: Any) -> Any:
    """A loss whose gradient falls quickly."""
    return (values**2).mean()


def late_from_zero(count: Any) -> Any:
    return jnp.where(count > 0, FALLING(count - 1), 0.0)


def early_epsilon(g: Any, p: Any, held: dict[str, Any], rate: Any, step: Any) -> Any:
    m, v = 0.9 * held["m"] + 0.1 * g, 0.999 * held["v"] + 0.001 * g * g
    scale = jnp.sqrt(1 - 0.999 ** step.astype(p.dtype)) / (1 - 0.9 ** step.astype(p.dtype))
    return -rate * scale * m / (jnp.sqrt(v) + 1e-6), {"m": m, "v": v}


def uncorrected(g: Any, p: Any, held: dict[str, Any], rate: Any, step: Any) -> Any:
    m, v = 0.9 * held["m"] + 0.1 * g, 0.999 * held["v"] + 0.001 * g * g
    return -rate * m / (jnp.sqrt(v) + 1e-6), {"m": m, "v": v}


FALLING = schedules.exponential_lr(LR, GAMMA)
rate, decay, trace = optax.scale_by_learning_rate(FALLING), optax.add_decayed_weights(WD), optax.trace(0.9)
BOTH = {"momentum": 0.9, "weight_decay": WD}
OWN_ADAM = {"m": 0.0, "v": 0.0}
SQUARES = {"loss": (squares, squares), "steps": 6}

TRAINING = (
    row("decay-missing", falling(SGD, **BOTH), trace, rate),
    row("decay-missing", falling(AdamW, weight_decay=WD), optax.adam(FALLING)),
    row("decay-after-momentum", falling(SGD, **BOTH), trace, decay, rate),
    row("decay-not-scaled", falling(SGD, **BOTH), trace, rate, optax.add_decayed_weights(-WD)),
    row("decay-on-weights-only", falling(SGD, **BOTH), optax.add_decayed_weights(WD, mask=matrices), trace, rate),
    row("decay-on-weights-only", falling(AdamW, weight_decay=WD), optax.adamw(FALLING, weight_decay=WD, mask=matrices)),
    row("decay-on-all", grouped, optax.adamw(FALLING, weight_decay=WD)),
    row("adam-decay-decoupled", falling(Adam, weight_decay=WD), optax.adamw(FALLING, weight_decay=WD)),
    row("adamw-decay-coupled", falling(AdamW, weight_decay=WD), decay, optax.adam(FALLING)),
    row("adamw-decay-1e-4", falling(AdamW), optax.adamw(FALLING)),
    row("momentum-missing", falling(SGD, momentum=0.9), optax.sgd(FALLING)),
    row("momentum-is-average", falling(SGD, **BOTH), decay, optax.ema(0.9, debias=False), rate),
    row("momentum-is-corrected-average", falling(SGD, **BOTH), decay, optax.ema(0.9), rate),
    row("nesterov-missing", falling(SGD, **BOTH, nesterov=True), decay, trace, rate),
    row("nesterov-added", falling(SGD, **BOTH), decay, optax.trace(0.9, nesterov=True), rate),
    row("dampening-missing", falling(SGD, **BOTH, dampening=0.5), decay, trace, rate),
    row("dampening-of-first", falling(SGD, **BOTH, dampening=0.5), decay, optax.scale(0.5), trace, rate),
    row("rate-before-momentum", falling(SGD, **BOTH), decay, rate, trace),
    row("adam-epsilon-in-root", falling(Adam, eps=1e-6), optax.adam(FALLING, eps=0.0, eps_root=1e-6)),
    row("adam-epsilon-early", falling(Adam, eps=1e-6), optim.from_rule(FALLING, OWN_ADAM, early_epsilon)),
    row("adam-not-corrected", falling(Adam, eps=1e-6), optim.from_rule(FALLING, OWN_ADAM, uncorrected)),
    row("adam-epsilon-1e-8", falling(Adam, eps=1e-4), optax.adam(FALLING)),
    row("adam-betas-default", falling(Adam, betas=(0.8, 0.95)), optax.adam(FALLING)),
    row("amsgrad-missing", falling(Adam, betas=(0.5, 0.5), amsgrad=True), optax.adam(FALLING, 0.5, 0.5), **SQUARES),
    row(
        "amsgrad-of-corrected",
        falling(Adam, betas=(0.5, 0.5), amsgrad=True),
        optax.amsgrad(FALLING, 0.5, 0.5),
        **SQUARES,
    ),
    row("rmsprop-epsilon-in-root", falling(RMSprop, eps=1e-4), optax.rmsprop(FALLING, 0.99, eps=1e-4)),
    row(
        "rmsprop-rate-before-momentum",
        falling(RMSprop, momentum=0.9),
        optax.rmsprop(FALLING, 0.99, eps_in_sqrt=False, momentum=0.9),
    ),
    row("rmsprop-of-optax", falling(RMSprop, momentum=0.9), optax.rmsprop(FALLING, momentum=0.9)),
    row("rmsprop-alpha-0.9", falling(RMSprop), optax.rmsprop(FALLING, eps_in_sqrt=False)),
    row("rmsprop-not-centered", falling(RMSprop, centered=True), optax.rmsprop(FALLING, 0.99, eps_in_sqrt=False)),
    row("rmsprop-starts-at-one", falling(RMSprop), optax.rmsprop(FALLING, 0.99, initial_scale=1.0, eps_in_sqrt=False)),
    row("adagrad-accumulator-0.1", falling(Adagrad), optim.adagrad(FALLING, initial_accumulator_value=0.1)),
    row("adagrad-of-optax", falling(Adagrad), optax.adagrad(FALLING)),
    row("adagrad-epsilon-in-root", falling(Adagrad, eps=1e-4), optax.adagrad(FALLING, 0.0, eps=1e-4)),
    row("adagrad-epsilon-1e-7", falling(Adagrad), optim.adagrad(FALLING, eps=1e-7)),
    row("adagrad-rate-constant", falling(Adagrad, lr_decay=0.1), optim.adagrad(FALLING)),
    row("schedule-missing", falling(SGD, momentum=0.9), optax.sgd(LR, 0.9)),
    row("schedule-late", falling(SGD, momentum=0.9), optax.sgd(late, 0.9)),
    row("schedule-late", falling(AdamW), optax.adamw(late, weight_decay=1e-2)),
    row("schedule-late-from-zero", falling(SGD, momentum=0.9), optax.sgd(late_from_zero, 0.9)),
    row("schedule-early", falling(SGD, momentum=0.9), optax.sgd(lambda count: FALLING(count + 1), 0.9)),
    row("cosine-stays", cosine, optax.sgd(optax.cosine_decay_schedule(LR, T_MAX)), steps=6),
    row("clip-missing", falling(SGD), optax.sgd(FALLING), clip_grad_norm=CLIP),
    row("clip-epsilon-missing", falling(SGD), optax.clip_by_global_norm(CLIP), rate, clip_grad_norm=CLIP),
    row("clip-of-values", falling(SGD), optax.clip(CLIP), rate, clip_grad_norm=CLIP),
    row("clip-of-each-tensor", falling(SGD), optax.stateless(clip_each), rate, clip_grad_norm=CLIP),
    row(
        "accumulation-averages",
        falling(SGD),
        optim.accumulate(optax.chain(optax.scale(0.5), rate), 2),
        accumulate=2,
    ),
    row("idle-parameters-trained", falling(SGD, **BOTH), decay, trace, rate, make=spare),
    row("vectors-not-trained", falling(SGD, **BOTH), decay, trace, rate, optax.masked(optax.set_to_zero(), vectors)),
)
