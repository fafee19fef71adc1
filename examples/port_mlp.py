# %% [markdown]
# # Check a port
#
# Check a port, read the finding, mend the port, and check again.
#
#     python examples/port_mlp.py

# %%
from __future__ import annotations

import jax
import numpy as np
import torch
from flax import nnx

import parity

# %% [markdown]
# The PyTorch model, and its port to Flax NNX. The port has one mistake: Flax's default GELU is not PyTorch's.

# %%
torch.manual_seed(0)
torch_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, *, approximate: bool = True) -> None:
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=self.approximate))


# %% [markdown]
# `parity.move` writes PyTorch's weights into the port. `parity.check` runs both models in float64 and compares them.
# The last lines of its report name the mistake, what it costs, and the argument that mends it.

# %%
x = np.random.default_rng(0).standard_normal((3, 4))
port = parity.move(torch_model, Mlp(nnx.Rngs(0)), x)
report = parity.check(torch_model, port, x)
print(report)

# %% [markdown]
# Do what the report says, and check again. What is left is rounding.

# %%
port = parity.move(torch_model, Mlp(nnx.Rngs(0), approximate=False), x)
report = parity.check(torch_model, port, x)
for row in report.models[0].rows:
    print(f"{row.quantity:18} differs by {row.distance:.1e}, rounding explains {row.bound:.1e}")
print(f"parity: {report.ok}")

# %% [raw]
# It prints:
#
#     Sequential  2 layers paired, seed 0
#     …
#     Sequential: NO parity: nnx differs from PyTorch
#     first divergence: nnx: layer.eval at (the network), between 0 and 2
#     cost: nnx: the output changes by 7.4e-05, 0 of 3 top-1 predictions flip, KL 1.3e-10, cosine of the gradients
#       1.000000, updates differ by 1.7e-04 after 3 steps
#     1. nnx: (the network) [gelu-tanh]: between 0 and 2: GELU's other form: Flax's default is the tanh approximation,
#       PyTorch's the error function; pass approximate=False, or True for PyTorch's approximate='tanh' (off by 2.2e-04
#       there)
#        fix: (the network): gelu(approximate=False)
#
#     weights            differs by 0.0e+00, rounding explains 0.0e+00
#     output.eval        differs by 1.7e-16, rounding explains 7.6e-15
#     layer.eval         differs by 1.7e-16, rounding explains 7.6e-15
#     output.train       differs by 1.7e-16, rounding explains 7.6e-15
#     layer.train        differs by 1.7e-16, rounding explains 7.6e-15
#     loss               differs by 6.1e-16, rounding explains 1.6e-14
#     gradient.parameter differs by 1.7e-16, rounding explains 1.0e-14
#     gradient.input     differs by 3.3e-16, rounding explains 1.5e-14
#     statistics         differs by 0.0e+00, rounding explains 0.0e+00
#     training.parameter differs by 0.0e+00, rounding explains 5.1e-12
#     training.state     differs by 2.4e-16, rounding explains 1.9e-14
#     parity: True
