# %% [markdown]
# # Go on with a training in the other framework
#
# A training with AdamW begins in PyTorch and goes on in Flax as if nothing had happened.
#
#     python examples/resume_training.py

# %%
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


# %% [markdown]
# Train for three steps in PyTorch.


# %%
torch_net = ports.create(NETWORK, "pytorch", seed=0).train()
optimizer = torch.optim.AdamW(torch_net.parameters(), lr=RATE, weight_decay=DECAY)


def torch_step(step: int) -> float:
    images, labels = (torch.from_numpy(array) for array in batch(step))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(torch_net(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


for step in range(STEPS // 2):
    print(f"step {step + 1}: loss {torch_step(step):.4f} in PyTorch")

# %% [markdown]
# Move the weights and BatchNorm's statistics, then the optimizer's state: both moments, and the count of steps.

# %%
net = ports.create(NETWORK, "nnx", seed=None)
ports.weights.write(net, ports.weights.read(torch_net))
net.train()
tx = optax.adamw(RATE, weight_decay=DECAY)
params = nnx.state(net, nnx.Param)
state = states.write(tx.init(params), net, states.read(optimizer, torch_net))
print(f"optax goes on after step {state[0].count}")

# %% [markdown]
# Go on in Flax, and in PyTorch, too, to compare.


# %%
@nnx.jit
def flax_step(net: nnx.Module, state: optax.OptState, images: jax.Array, labels: jax.Array) -> tuple:
    def loss_of(net: nnx.Module) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_of)(net)
    updates, state = tx.update(grads, state, nnx.state(net, nnx.Param))
    nnx.update(net, optax.apply_updates(nnx.state(net, nnx.Param), updates))
    return state, loss


for step in range(STEPS // 2, STEPS):
    images, labels = batch(step)
    state, loss = flax_step(net, state, jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(labels))
    print(f"step {step + 1}: loss {torch_step(step):.4f} in PyTorch, {loss:.4f} in Flax")

# %% [raw]
# It prints:
#
#     step 1: loss 2.1609 in PyTorch
#     step 2: loss 2.4609 in PyTorch
#     step 3: loss 2.2709 in PyTorch
#     optax goes on after step 3
#     step 4: loss 2.0212 in PyTorch, 2.0212 in Flax
#     step 5: loss 2.7046 in PyTorch, 2.7046 in Flax
#     step 6: loss 1.8795 in PyTorch, 1.8795 in Flax
