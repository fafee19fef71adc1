"""The second tutorial's network as published: its printed figures come out of all three ports.

The original draws its weights with PyTorch's generator; they are moved into each port, and the `shortcut` that it
builds and never calls is dropped by a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from published import published_network

import ports
from ports.weights import Ignore, WeightsError, read, write

UNUSED = Ignore("*.shortcut.*", why="built by the original, never called")

LOGITS = [-0.0362, -0.4174, -0.8190, 0.2587, 1.0380, 0.6910, 0.5373, -0.6552, -0.0163, 0.0168]
CLASS, LOSS = 3, 2.259822
GRADIENT = [
    [-8.1463e-03, 1.7736e-03, 4.1157e-03],
    [1.8000e-02, 1.5645e-03, -1.0918e-02],
    [3.9549e-03, 2.2518e-03, 6.2204e-04],
]


@dataclass
class Step:
    """One training step in train mode; gradients and parameters in the torch form."""

    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def torch_step(net: torch.nn.Module, x: torch.Tensor) -> Step:
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    logits = net(x)
    loss = F.cross_entropy(logits, torch.tensor([CLASS]))
    loss.backward()
    gradients = {name: p.grad.clone().numpy() for name, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    return Step(logits.detach().numpy(), loss.item(), gradients, read(net))


def pytorch(weights: dict[str, np.ndarray], x: torch.Tensor, dtype: str) -> Step:
    net = ports.create("tutorial_resnet", "pytorch", seed=None, dtype=dtype)
    write(net, weights, rules=[UNUSED])
    return torch_step(net, x)


def nnx_step(weights: dict[str, np.ndarray], x: torch.Tensor, dtype: str) -> Step:
    net = ports.create("tutorial_resnet", "nnx", seed=None, dtype=dtype)
    write(net, weights, rules=[UNUSED])
    optimizer = nnx.Optimizer(net, optax.adam(0.001), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, x: jax.Array) -> Any:
        def objective(net: Any) -> Any:
            logits = net(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([CLASS])).mean(), logits

        (loss, logits), gradients = nnx.value_and_grad(objective, has_aux=True)(net)
        optimizer.update(net, gradients)
        return loss, logits, gradients

    loss, logits, gradients = step(net, optimizer, jnp.array(x.numpy().transpose(0, 2, 3, 1)))
    graphdef, _, rest = nnx.split(net, nnx.Param, ...)
    return Step(np.asarray(logits), float(loss), read(nnx.merge(graphdef, gradients, rest)), read(net))


def linen_step(weights: dict[str, np.ndarray], x: torch.Tensor, dtype: str) -> Step:
    module, variables = ports.create("tutorial_resnet", "linen", seed=None, dtype=dtype)
    variables = write((module, variables), weights, rules=[UNUSED])
    params, stats = variables["params"], variables["batch_stats"]
    tx = optax.adam(0.001)

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: jax.Array) -> Any:
        def objective(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([CLASS])).mean()
            return loss, (logits, new["batch_stats"])

        (loss, (logits, new)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, _ = tx.update(gradients, state, params)
        return loss, logits, gradients, optax.apply_updates(params, updates), new

    images = jnp.array(x.numpy().transpose(0, 2, 3, 1))
    loss, logits, gradients, params, new = step(params, stats, tx.init(params), images)
    torch_form = [read((module, {"params": tree, "batch_stats": new})) for tree in (gradients, params)]
    return Step(np.asarray(logits), float(loss), *torch_form)


STEPS = {"pytorch": pytorch, "nnx": nnx_step, "linen": linen_step}


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", STEPS)
def test_published_figures(port: str) -> None:
    x, original = published_network()
    step = STEPS[port](read(original), x, "float32")
    half_a_digit = 5.1e-5  # the figures are printed with four decimals
    np.testing.assert_allclose(step.logits[0], LOGITS, rtol=0, atol=half_a_digit)
    assert round(step.loss, 6) == pytest.approx(LOSS, abs=2e-6)
    # Printed with five significant digits: half of the last one.
    np.testing.assert_allclose(step.gradients["layer2.conv1.weight"][0, 0], GRADIENT, rtol=0, atol=5.1e-7)


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", STEPS)
def test_the_same_parameters_after_one_adam_step(port: str) -> None:
    x, original = published_network()
    weights = read(original.double())
    expected = torch_step(original, x.double())
    with jax.enable_x64(True):
        step = STEPS[port](weights, x.double(), "float64")
    for name, before in weights.items():
        if ".shortcut." in name or "running" in name or "num_batches" in name:
            continue
        # Adam divides by the gradient's size, so rounding in a gradient near zero is magnified, up to 1e-12 / 1e-8.
        update = expected.after[name] - before
        distance = np.linalg.norm(step.after[name] - expected.after[name])
        assert distance <= 1e-7 * np.linalg.norm(update), name


def test_the_unused_shortcut_needs_a_rule() -> None:
    _, original = published_network()
    net = ports.create("tutorial_resnet", "pytorch", seed=None)
    with pytest.raises(WeightsError, match=r"layer3\.shortcut\.0\.weight"):
        write(net, read(original))
    assert not any(array.any() for array in read(net).values())
