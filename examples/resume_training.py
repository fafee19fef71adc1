"""Begin a training with AdamW in PyTorch, and go on with it in Flax as if nothing had happened.

python examples/resume_training.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import ports
from ports.weights import optimizer as states

NETWORK, STEPS = "tutorial_resnet", 6
RATE, DECAY = 1e-3, 0.05


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images (4, 3, 32, 32) and labels."""
    rng = np.random.default_rng(step)
    return rng.standard_normal((4, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 4)


def train_in_torch(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for images, labels in map(batch, steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch_net = ports.create(NETWORK, "pytorch", seed=0).train()
    optimizer = torch.optim.AdamW(torch_net.parameters(), lr=RATE, weight_decay=DECAY)
    train_in_torch(torch_net, optimizer, range(STEPS // 2))

    # Weights, statistics, and both moments with their count move over.
    net = ports.create(NETWORK, "nnx", seed=None)
    ports.weights.write(net, ports.weights.read(torch_net))
    net.train()
    tx = optax.adamw(RATE, weight_decay=DECAY)
    params = nnx.state(net, nnx.Param)
    state = states.write(tx.init(params), net, states.read(optimizer, torch_net))

    @nnx.jit
    def step(
        net: nnx.Module, state: optax.OptState, images: jax.Array, labels: jax.Array
    ) -> tuple[optax.OptState, jax.Array]:
        def loss_of(net: nnx.Module) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net(images), labels).mean()

        loss, grads = nnx.value_and_grad(loss_of)(net)
        updates, state = tx.update(grads, state, nnx.state(net, nnx.Param))
        nnx.update(net, optax.apply_updates(nnx.state(net, nnx.Param), updates))
        return state, loss

    here, there = train_in_torch(torch_net, optimizer, range(STEPS // 2, STEPS)), []
    for images, labels in map(batch, range(STEPS // 2, STEPS)):
        state, loss = step(net, state, jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(labels))
        there.append(float(loss))
    for number, (ours, theirs) in enumerate(zip(here, there, strict=True), STEPS // 2 + 1):
        print(f"step {number}: loss {ours:.6f} in PyTorch, {theirs:.6f} in Flax")


if __name__ == "__main__":
    main()
