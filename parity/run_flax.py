"""Runs a Flax network, NNX or Linen, and records every quantity in PyTorch's names and layouts.

`run_nnx.py` and `run_linen.py` give a network as pure functions (`Functional`); what is done with them stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.quantities import SGD, Probe, Tensors, outputs, to_nchw

Record = dict[str, tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Functional:
    """A network as pure functions.

    Attributes:
        params: the tree of parameters.
        stats: the tree of everything else: running statistics.
        forward: (params, stats, images NHWC, train) to (output, every layer's input and output, new stats).
        to_hub: (params, stats) to the hub form; gradients may stand in for the parameters.
    """

    params: Any
    stats: Any
    forward: Callable[[Any, Any, jax.Array, bool], tuple[Any, Record, Any]]
    to_hub: Callable[[Any, Any], dict[str, np.ndarray]]


def loss_of(values: Any, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits; for feature maps the sum of their mean squares."""
    if isinstance(values, jax.Array):
        return optax.softmax_cross_entropy_with_integer_labels(values, labels).mean()
    return sum((jnp.square(value).mean() for value in values), jnp.zeros(()))


def transform(sgd: SGD) -> optax.GradientTransformation:
    """`torch.optim.SGD` in optax: the decay is added to the gradient, before the momentum."""
    rates = jnp.array(sgd.learning_rates or (0.0,))
    return optax.chain(
        optax.add_decayed_weights(sgd.weight_decay),
        optax.sgd(lambda count: rates[count], momentum=sgd.momentum),
    )


def nhwc(probe: Probe) -> jax.Array:
    return jnp.array(probe.images.transpose(0, 2, 3, 1))


def layers(net: Functional, probe: Probe, *, train: bool) -> tuple[Tensors, Tensors]:
    """Every layer's input and output."""
    record = jax.jit(lambda p, s, x: net.forward(p, s, x, train)[1])(net.params, net.stats, nhwc(probe))
    return (
        {name: to_nchw(np.asarray(i)) for name, (i, _) in record.items()},
        {name: to_nchw(np.asarray(o)) for name, (_, o) in record.items()},
    )


def observe(
    net: Functional, probe: Probe, sgd: SGD, parameters: list[str], tx: optax.GradientTransformation | None = None
) -> Iterator[tuple[str, Tensors]]:
    """All quantities of `parity.quantities.QUANTITIES`, one after the other.

    Args:
        parameters: the hub names of what is trained; the rest is statistics.
        tx: the optax transform of the training; by default what `sgd` says.
    """
    images, labels = nhwc(probe), jnp.array(probe.labels)

    def evaluate(params: Any, stats: Any, images: jax.Array) -> Any:
        values, record, _ = net.forward(params, stats, images, False)
        return values, {name: output for name, (_, output) in record.items()}

    values, record = jax.jit(evaluate)(net.params, net.stats, images)
    yield "output.eval", outputs(values, nchw=False)
    yield "layer.eval", {name: to_nchw(np.asarray(output)) for name, output in record.items()}
    del values, record

    def objective(params: Any, images: jax.Array, stats: Any) -> Any:
        values, record, stats = net.forward(params, stats, images, True)
        return loss_of(values, labels), (values, {name: output for name, (_, output) in record.items()}, stats)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    tx = transform(sgd) if tx is None else tx
    params, stats, state = net.params, net.stats, tx.init(net.params)
    for step in range(max(sgd.steps, 1)):
        (loss, (values, record, stats)), (grads, image_grads) = gradient(params, images, stats)
        if step == 0:
            yield "output.train", outputs(values, nchw=False)
            yield "layer.train", {name: to_nchw(np.asarray(output)) for name, output in record.items()}
            yield "loss", {"loss": np.asarray(loss)}
        del values, record
        if step == 0:
            hub = net.to_hub(grads, stats)
            yield "gradient.parameter", {name: hub[name] for name in parameters}
            yield "gradient.input", {"input": to_nchw(np.asarray(image_grads))}
            yield "statistics", {name: array for name, array in hub.items() if name not in set(parameters)}
            del hub
        if sgd.steps:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    if sgd.steps:
        start, end = net.to_hub(net.params, net.stats), net.to_hub(params, stats)
        yield "training.parameter", {name: end[name] - start[name] for name in parameters}
