"""Check a port, read the finding, mend it, and check again.

python examples/port_mlp.py
"""

from __future__ import annotations

import jax
import numpy as np
import torch
from flax import nnx

import parity


class Mlp(nnx.Module):
    """The port of `torch.nn.Sequential(Linear, GELU, Linear)`."""

    def __init__(self, approximate: bool, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=self.approximate))


def main() -> None:
    torch.manual_seed(0)
    torch_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    x = np.random.default_rng(0).standard_normal((3, 4))
    for approximate in (True, False):  # Flax's default, and PyTorch's
        port = parity.move(torch_model, Mlp(approximate, nnx.Rngs(0)), x)
        print(parity.check(torch_model, port, x))


if __name__ == "__main__":
    main()
