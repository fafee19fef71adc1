"""Haiku Geometric's graph convolution counts every edge twice in the degrees of the nodes.

Source: alexOarga/haiku-geometric@829fb69.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

NODES, FEATURES, HIDDEN, CLASSES = 7, 5, 12, 3


class GCNConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        loops = torch.arange(x.shape[0])
        senders, receivers = torch.cat([edges, torch.stack([loops, loops])], 1)
        x = self.lin(x)
        degrees = x.new_zeros(x.shape[0]).index_add(0, receivers, x.new_ones(len(receivers)))
        weights = degrees[senders].rsqrt() * degrees[receivers].rsqrt()
        return torch.zeros_like(x).index_add(0, receivers, x[senders] * weights[:, None]) + self.bias


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(FEATURES, HIDDEN), GCNConv(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x, edges).relu(), edges)


class FlaxGCNConv(nnx.Module):
    def __init__(self, inputs: int, outputs: int, counted_twice: bool, bias_unused: bool, rngs: nnx.Rngs) -> None:
        self.counted_twice, self.bias_unused = counted_twice, bias_unused
        self.lin = nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array, edges: jax.Array) -> jax.Array:
        loops = jnp.arange(x.shape[0])
        senders, receivers = jnp.concatenate([edges, jnp.stack([loops, loops])], 1)
        x = self.lin(x)
        count = jnp.ones(len(receivers), x.dtype)
        if self.counted_twice:
            count = count + jnp.ones_like(count)
        degrees = jax.ops.segment_sum(count, receivers, x.shape[0])
        weights = jax.lax.rsqrt(degrees[senders]) * jax.lax.rsqrt(degrees[receivers])
        x = jax.ops.segment_sum(x[senders] * weights[:, None], receivers, x.shape[0])
        return x if self.bias_unused else x + self.bias[...]


class Port(nnx.Module):
    def __init__(self, counted_twice: bool = False, bias_unused: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.conv1 = FlaxGCNConv(FEATURES, HIDDEN, counted_twice, bias_unused, rngs)
        self.conv2 = FlaxGCNConv(HIDDEN, CLASSES, counted_twice, bias_unused, rngs)

    def __call__(self, x: jax.Array, edges: jax.Array) -> jax.Array:
        return self.conv2(nnx.relu(self.conv1(x, edges)), edges)


def inputs() -> tuple[np.ndarray, ...]:
    """Features of nodes, and edges in both directions."""
    pairs = np.array([[0, 1, 1, 2, 4, 5], [1, 2, 3, 3, 5, 6]])
    return numbers(NODES, FEATURES), np.concatenate([pairs, pairs[::-1]], 1)


BUG = Bug(
    source="alexOarga/haiku-geometric@829fb69",
    what="Each edge counts as two in the degrees, so messages are weighted half as much.",
    torch=Torch,
    port=lambda wrong: Port(counted_twice=wrong),
    inputs=inputs,
    layer="conv1",
    named=r"degree|count|\bedges?\b|normali[sz]|factor|half|scale",
    kind="norm",
    blind=True,
    trap_added=True,
)
