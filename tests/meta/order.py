"""Layers that a port calls on the wrong side of an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from .planted import Case, NNXWhole, Whole, images, moved

# What a block computes of its layers, a dense one, a norm and a dense one, and of its input.
Order = Callable[[Any, Any, Any, Any], Any]


class Ordered(nn.Module):
    """Three layers, called in some order."""

    def __init__(self, order: Order, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.order = nn.Linear(6, 6), norm, nn.Linear(6, 6), order

    def forward(self, x: Any) -> Any:
        return self.order(self.first, self.norm, self.second, x)


class NNXOrdered(nnx.Module):
    """`Ordered` in NNX."""

    def __init__(self, order: Order, norm: Any, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.norm, self.order = norm, order

    def __call__(self, x: Any) -> Any:
        return self.order(self.first, self.norm, self.second, x)


def ordered(right: Order, wrong: Order) -> Callable[[], tuple[Any, ...]]:
    """A block whose layers the port calls in another order."""

    def make() -> tuple[Any, ...]:
        rngs = nnx.Rngs(0)
        model = Whole(Ordered(right, nn.LayerNorm(6)), nn.Linear(6, 3), (1,))
        block = NNXOrdered(wrong, nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs), rngs)
        return moved(model, NNXWhole(block, nnx.Linear(6, 3, rngs=rngs), (1,)), images(2, 5, 6))

    return make


def on_the_branch(first: Any, norm: Any, second: Any, x: Any) -> Any:
    return second(x + norm(first(x)))


def on_the_sum(first: Any, norm: Any, second: Any, x: Any) -> Any:
    return second(norm(x + first(x)))


def activated(tanh: Any, after: bool) -> Order:
    """A norm, and an activation on one of its sides."""
    if after:
        return lambda first, norm, second, x: second(norm(tanh(first(x))))
    return lambda first, norm, second, x: second(tanh(norm(first(x))))


ORDER = (
    Case("layer-after-operation", ordered(on_the_branch, on_the_sum), "block"),
    Case("layer-after-operation", ordered(activated(torch.tanh, False), activated(jnp.tanh, True)), "block"),
    Case("layer-before-operation", ordered(on_the_sum, on_the_branch), "block"),
    Case("layer-before-operation", ordered(activated(torch.tanh, True), activated(jnp.tanh, False)), "block"),
)
