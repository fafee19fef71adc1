"""`torch.optim` in optax: transforms that compute exactly what PyTorch computes, to rounding.

    tx = ports.optim.sgd(0.1, momentum=0.9, weight_decay=5e-4)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)

Names, defaults and formulas are PyTorch's (the pseudo-code in the documentation of `torch.optim`); a state has
PyTorch's names for its tensors. optax's own transforms differ in ways that one step does not always show: the places of
epsilon and the learning rate, the first momentum, and where the decay is added.

A learning rate is a number or a schedule (`ports.schedules`): a function of the number of steps done, as optax has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ports.errors import UserError

Rate = float | jax.Array
LearningRate = float | Callable[[jax.Array], Rate]
Tensors = dict[str, jax.Array]
# Takes gradient, parameter, state tensors, learning rate and step number (from 1); gives the update and the new
# tensors.
Rule = Callable[[jax.Array, jax.Array, Tensors, Rate, jax.Array], tuple[jax.Array, Tensors]]


class State(NamedTuple):
    """The state of every optimizer here.

    Attributes:
        count: int32 scalar, the steps done.
        tensors: by PyTorch's name (`momentum_buffer`, `exp_avg`), a tree with the structure of the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - a tuple has a `count` too
    tensors: dict[str, PyTree]


def from_rule(learning_rate: LearningRate, starts: dict[str, float], rule: Rule) -> optax.GradientTransformation:
    """Make an optimizer from its rule for one parameter.

    Args:
        starts: the tensors of its state, and the numbers with which they are filled.
    """

    def init(params: PyTree) -> State:
        tensors = {
            name: jax.tree.map(lambda p, value=value: jnp.full_like(p, value), params) for name, value in starts.items()
        }
        return State(jnp.zeros((), jnp.int32), tensors)

    def update(grads: PyTree, state: State, params: PyTree = None) -> tuple[PyTree, State]:
        if params is None:
            raise UserError("update: got no parameters, expected tx.update(grads, state, params)")
        step = state.count + 1
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        leaves, tree = jax.tree.flatten(params)
        held = {name: tree.flatten_up_to(tensor) for name, tensor in state.tensors.items()}
        updates, new = [], {name: [] for name in held}
        for i, (p, g) in enumerate(zip(leaves, tree.flatten_up_to(grads), strict=True)):
            change, tensors = rule(g, p, {name: values[i] for name, values in held.items()}, rate, step)
            updates.append(change.astype(p.dtype))
            for name, tensor in tensors.items():
                new[name].append(tensor.astype(held[name][i].dtype))
        return tree.unflatten(updates), State(step, {name: tree.unflatten(values) for name, values in new.items()})

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _require(optimizer: str, **ranges: tuple[float, float, float]) -> None:
    """Raise if an option is outside its range, as PyTorch does."""
    for name, (value, least, below) in ranges.items():
        if not least <= value < below:
            limit = f"from {least:g} to below {below:g}" if below < float("inf") else f"{least:g} or more"
            raise UserError(f"{optimizer}: {name}: got {value}, expected {limit}")


INFINITY = float("inf")


def sgd(
    learning_rate: LearningRate,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """`torch.optim.SGD`. The decay is added to the gradient; the first buffer is the gradient itself, not dampened.

    Raises:
        UserError: an option out of range; Nesterov without momentum or with dampening.
    """
    _require("sgd", momentum=(momentum, 0, INFINITY), weight_decay=(weight_decay, 0, INFINITY))
    if nesterov and (momentum <= 0 or dampening != 0):
        raise UserError(
            f"sgd: got momentum {momentum}, dampening {dampening}; Nesterov needs a momentum and no dampening"
        )

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay else g
        if not momentum:
            return -rate * g, {}
        buffer = jnp.where(step == 1, g, momentum * held["momentum_buffer"] + (1 - dampening) * g)
        return -rate * (g + momentum * buffer if nesterov else buffer), {"momentum_buffer": buffer}

    return from_rule(learning_rate, {"momentum_buffer": 0.0} if momentum else {}, rule)


def adam(
    learning_rate: LearningRate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> optax.GradientTransformation:
    """`torch.optim.Adam` (Kingma and Ba, arXiv:1412.6980). The decay is added to the gradient.

    Raises:
        UserError: an option out of range.
    """
    return _adam("adam", learning_rate, betas, eps, weight_decay, amsgrad, decoupled=False)


def adamw(
    learning_rate: LearningRate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
) -> optax.GradientTransformation:
    """`torch.optim.AdamW` (Loshchilov and Hutter, arXiv:1711.05101). The decay is 1e-2 by default; in optax it is 1e-4.

    Raises:
        UserError: an option out of range.
    """
    return _adam("adamw", learning_rate, betas, eps, weight_decay, amsgrad, decoupled=True)


def _adam(
    optimizer: str,
    learning_rate: LearningRate,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    decoupled: bool,
) -> optax.GradientTransformation:
    first, second = betas
    _require(
        optimizer,
        **{"betas[0]": (first, 0, 1), "betas[1]": (second, 0, 1), "eps": (eps, 0, INFINITY)},
        weight_decay=(weight_decay, 0, INFINITY),
    )

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay and not decoupled else g
        new = {
            "exp_avg": first * held["exp_avg"] + (1 - first) * g,
            "exp_avg_sq": second * held["exp_avg_sq"] + (1 - second) * g * g,
        }
        square = new["exp_avg_sq"]
        if amsgrad:
            square = new["max_exp_avg_sq"] = jnp.maximum(held["max_exp_avg_sq"], square)
        time = step.astype(p.dtype)
        root = jnp.sqrt(square) / jnp.sqrt(1 - second**time) + eps
        change = -rate / (1 - first**time) * new["exp_avg"] / root
        return change - rate * weight_decay * p if decoupled and weight_decay else change, new

    names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
    return from_rule(learning_rate, dict.fromkeys(names, 0.0), rule)


def adamax(
    learning_rate: LearningRate = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """`torch.optim.Adamax` (Kingma and Ba, arXiv:1412.6980, section 7.1). Epsilon is added inside of the maximum.

    Raises:
        UserError: an option out of range.
    """
    first, second = betas
    _require(
        "adamax",
        **{"betas[0]": (first, 0, 1), "betas[1]": (second, 0, 1), "eps": (eps, 0, INFINITY)},
        weight_decay=(weight_decay, 0, INFINITY),
    )

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay else g
        mean = first * held["exp_avg"] + (1 - first) * g
        largest = jnp.maximum(second * held["exp_inf"], jnp.abs(g) + eps)
        change = -rate / (1 - first ** step.astype(p.dtype)) * mean / largest
        return change, {"exp_avg": mean, "exp_inf": largest}

    return from_rule(learning_rate, {"exp_avg": 0.0, "exp_inf": 0.0}, rule)


def rmsprop(
    learning_rate: LearningRate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> optax.GradientTransformation:
    """`torch.optim.RMSprop`. Epsilon is outside the root, and the learning rate comes after the momentum.

    Raises:
        UserError: an option out of range.
    """
    _require(
        "rmsprop",
        alpha=(alpha, 0, INFINITY),
        eps=(eps, 0, INFINITY),
        weight_decay=(weight_decay, 0, INFINITY),
        momentum=(momentum, 0, INFINITY),
    )

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay else g
        square = alpha * held["square_avg"] + (1 - alpha) * g * g
        new = {"square_avg": square}
        if centered:
            mean = new["grad_avg"] = held["grad_avg"] + (1 - alpha) * (g - held["grad_avg"])
            square = square - mean * mean
        change = g / (jnp.sqrt(square) + eps)
        if momentum:
            change = new["momentum_buffer"] = momentum * held["momentum_buffer"] + change
        return -rate * change, new

    names = ("square_avg", *(["momentum_buffer"] if momentum else []), *(["grad_avg"] if centered else []))
    return from_rule(learning_rate, dict.fromkeys(names, 0.0), rule)


def adagrad(
    learning_rate: LearningRate = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> optax.GradientTransformation:
    """`torch.optim.Adagrad` (Duchi et al., 2011). The accumulator starts at 0; in optax it starts at 0.1.

    Raises:
        UserError: an option out of range.
    """
    _require(
        "adagrad",
        lr_decay=(lr_decay, 0, INFINITY),
        weight_decay=(weight_decay, 0, INFINITY),
        initial_accumulator_value=(initial_accumulator_value, 0, INFINITY),
        eps=(eps, 0, INFINITY),
    )

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay else g
        total = held["sum"] + g * g
        return -rate / (1 + (step - 1) * lr_decay) * g / (jnp.sqrt(total) + eps), {"sum": total}

    return from_rule(learning_rate, {"sum": initial_accumulator_value}, rule)


def adadelta(
    learning_rate: LearningRate = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.Adadelta` (Zeiler, arXiv:1212.5701). The learning rate scales the update, not its average.

    Raises:
        UserError: an option out of range.
    """
    up_to_one = math.nextafter(1, 2)  # PyTorch takes 1 itself
    _require("adadelta", rho=(rho, 0, up_to_one), eps=(eps, 0, INFINITY), weight_decay=(weight_decay, 0, INFINITY))

    def rule(g: jax.Array, p: jax.Array, held: Tensors, rate: Rate, step: jax.Array) -> tuple[jax.Array, Tensors]:
        g = g + weight_decay * p if weight_decay else g
        square = rho * held["square_avg"] + (1 - rho) * g * g
        delta = jnp.sqrt(held["acc_delta"] + eps) / jnp.sqrt(square + eps) * g
        return -rate * delta, {
            "square_avg": square,
            "acc_delta": rho * held["acc_delta"] + (1 - rho) * delta * delta,
        }

    return from_rule(learning_rate, {"square_avg": 0.0, "acc_delta": 0.0}, rule)


def clip_grad_norm(max_norm: float, norm_type: float = 2.0) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`: gradients times min(1, max_norm / (norm + 1e-6))."""

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        norms = [jnp.linalg.norm(g.ravel(), norm_type) for g in jax.tree.leaves(grads)]
        total = jnp.linalg.norm(jnp.stack(norms), norm_type)
        scale = jnp.minimum(1.0, max_norm / (total + 1e-6))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def clip_grad_value(clip_value: float) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_value_`: every number of the gradients within ± clip_value."""

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda g: jnp.clip(g, -clip_value, clip_value), grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


class Accumulated(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        count: int32 scalar, the gradients since the last step.
        sums: their sums, a tree with the structure of the parameters.
        inner: the state of the transform that uses them.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - a tuple has a `count` too
    sums: PyTree
    inner: PyTree


def accumulate(tx: optax.GradientTransformation, passes: int) -> optax.GradientTransformation:
    """Apply `tx` once every `passes` gradients, with their sum.

    This is PyTorch's training if `zero_grad` is called once every `passes` calls of `backward`. (`optax.MultiSteps`
    takes the average, which changes the effective learning rate, decay and clipping.)

    Raises:
        UserError: fewer than one pass.
    """
    _require("accumulate", passes=(passes, 1, INFINITY))

    def init(params: PyTree) -> Accumulated:
        return Accumulated(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), tx.init(params))

    def update(grads: PyTree, state: Accumulated, params: PyTree = None) -> tuple[PyTree, Accumulated]:
        sums = jax.tree.map(jnp.add, state.sums, grads)

        def step() -> tuple[PyTree, Accumulated]:
            updates, inner = tx.update(sums, state.inner, params)
            return updates, Accumulated(jnp.zeros_like(state.count), jax.tree.map(jnp.zeros_like, sums), inner)

        def wait() -> tuple[PyTree, Accumulated]:
            return jax.tree.map(jnp.zeros_like, sums), Accumulated(state.count + 1, sums, state.inner)

        return jax.lax.cond(state.count + 1 == passes, step, wait)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def trained(tx: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformation:
    """Apply `tx` only to the parameters for which `mask` (a tree of booleans, or a function of the parameters) is true.

    PyTorch leaves a parameter that got no gradient as it is; JAX gives it a gradient of zeros, and decay and momentum
    would move it. (`optax.masked` passes the gradient of a masked parameter on as its update.)
    """

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        chosen = mask(params) if callable(mask) else mask
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda on, u: jnp.where(on, u, jnp.zeros_like(u)), chosen, updates), state

    return optax.GradientTransformation(tx.init, update)  # pyright: ignore[reportArgumentType]
