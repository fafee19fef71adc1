"""MLX's GRU leaves out the hidden bias of the candidate where no hidden state is given.

Source: ml-explore/mlx@f226eeec9.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

FEATURES, HIDDEN, CLASSES = 6, 10, 4


class TorchGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Wx = nn.Linear(FEATURES, 3 * HIDDEN)
        self.Wh = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.bhn = nn.Parameter(torch.randn(HIDDEN) / HIDDEN**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, outputs = x.new_zeros(x.shape[0], HIDDEN), []
        for step in self.Wx(x).unbind(1):
            (xr, xz, xn), (hr, hz, hn) = step.chunk(3, -1), self.Wh(hidden).chunk(3, -1)
            r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
            n = (xn + r * (hn + self.bhn)).tanh()
            hidden = (1 - z) * n + z * hidden
            outputs.append(hidden)
        return torch.stack(outputs, 1)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = TorchGRU(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


class FlaxGRU(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.Wx = nnx.Linear(FEATURES, 3 * HIDDEN, rngs=rngs)
        self.Wh = nnx.Linear(HIDDEN, 3 * HIDDEN, use_bias=False, rngs=rngs)
        self.bhn = nnx.Param(jnp.zeros(HIDDEN))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden, outputs = None, []
        steps = self.Wx(x)
        for i in range(x.shape[1]):
            r, z, n = jnp.split(steps[:, i], 3, -1)
            if hidden is not None:
                hr, hz, hn = jnp.split(self.Wh(hidden), 3, -1)
                r, z, hn = r + hr, z + hz, hn + self.bhn[...]
            else:
                hn = jnp.zeros_like(n) if self.wrong else self.bhn[...]
            n, z = jnp.tanh(n + nnx.sigmoid(r) * hn), nnx.sigmoid(z)
            hidden = (1 - z) * n if hidden is None else (1 - z) * n + z * hidden
            outputs.append(hidden)
        return jnp.stack(outputs, 1)


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.encoder, self.head = FlaxGRU(wrong, rngs), nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.encoder(x))


BUG = Bug(
    source="ml-explore/mlx@f226eeec9",
    what="At the first step the candidate lacks its hidden bias.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 5, FEATURES),),
    layer="encoder",
    named=r"bias|bhn|first step|initial (step|state)|step 0",
    kind="recurrent",
    blind=True,
)
