"""Trains a network in Flax NNX, a step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

import ports
from benchmarks.depth.plan import DepthPlan
from ports import optim
from ports.family import Description
from ports.losses import classification


class NnxTrainer:
    """A network with its optimizer, under `jax.jit`; the counterpart of the class in `benchmarks.depth.pytorch`.

    Args:
        weights: the initial ones, in the torch form.
        dtype: `float64` or `float32`; of weights, images and everything else.
    """

    def __init__(
        self, spec: Description, weights: Mapping[str, np.ndarray], plan: DepthPlan, dtype: str, device: str
    ) -> None:
        jax.config.update("jax_default_matmul_precision", "highest")
        self.double, self.dtype = dtype == "float64", jnp.dtype(dtype)
        with jax.enable_x64(self.double):
            self.net = ports.create(spec, "nnx", seed=None, dtype=dtype)
            ports.weights.write(self.net, weights)
            graph, self.params, self.rest = nnx.split(self.net, nnx.Param, ...)
            tx = optim.sgd(plan.rate, momentum=plan.momentum, weight_decay=plan.decay)
            self.state = tx.init(self.params)

        def train(params: PyTree, rest: PyTree, state: PyTree, images: jax.Array, labels: jax.Array) -> Any:
            def objective(params: PyTree) -> tuple[jax.Array, Any]:
                net = nnx.merge(graph, params, rest, copy=True)
                net.train()
                logits = net(images)
                return classification(logits, labels), (logits, nnx.state(net, nnx.Not(nnx.Param)))

            (loss, (logits, changed)), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), changed, state, grads, loss, _wrong(logits, labels)

        def evaluate(params: PyTree, rest: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
            net = nnx.merge(graph, params, rest, copy=True)
            net.eval()
            return _wrong(net(images), labels)

        self._train, self._evaluate = jax.jit(train), jax.jit(evaluate)

    def _placed(self, images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(images.transpose(0, 2, 3, 1), self.dtype), jnp.asarray(labels)

    def step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Take a step of SGD; return the loss before it, and how many images were classified wrong."""
        with jax.enable_x64(self.double):
            placed = self._placed(images, labels)
            found = self._train(self.params, self.rest, self.state, *placed)
        self.params, self.rest, self.state, self.grads, loss, wrong = found
        return float(loss), int(wrong)

    def gradient_norms(self) -> dict[str, float]:
        """Return the norm of the last step's gradient, by PyTorch's name of the parameter."""
        with jax.enable_x64(self.double):
            nnx.update(self.net, self.grads)
            found = ports.weights.read(self.net)
        names = (name for name in found if name.rpartition(".")[2] in ("weight", "bias"))
        return {name: float(np.linalg.norm(found[name])) for name in names}

    def wrong(self, images: np.ndarray, labels: np.ndarray) -> int:
        """Return how many images are classified wrong with the running statistics."""
        with jax.enable_x64(self.double):
            return int(self._evaluate(self.params, self.rest, *self._placed(images, labels)))


def _wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (logits.argmax(1) != labels).sum()
