"""What is drawn for one block, and the activations that it may have."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import nn
from torch.nn import functional as F

# (PyTorch's way, Flax's way)
Sides = tuple[Any, Any]


@dataclass(frozen=True)
class Shape:
    """What flows between blocks, without the batch.

    Attributes:
        kind: `vector` (features), `sequence` (length, features) or `image` (channels, height, width in PyTorch).
        length: of a sequence; 0 where a block in front of it changes the size.
    """

    kind: str
    width: int
    length: int = 0


@dataclass(frozen=True)
class Activation:
    """One function: what makes PyTorch's, a module or a function, and JAX's."""

    torch: Callable[[], Callable[[Any], Any]]
    jax: Callable[[Any], Any]


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, jax.nn.relu),
    "relu in place": Activation(lambda: nn.ReLU(inplace=True), jax.nn.relu),
    "relu, a function": Activation(lambda: F.relu, jax.nn.relu),
    "gelu": Activation(nn.GELU, lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu, a function": Activation(lambda: F.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu of tanh": Activation(lambda: nn.GELU(approximate="tanh"), jax.nn.gelu),
    "quick gelu": Activation(lambda: lambda x: x * torch.sigmoid(1.702 * x), lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "silu": Activation(nn.SiLU, jax.nn.silu),
    "silu, a function": Activation(lambda: F.silu, jax.nn.swish),
    "tanh": Activation(nn.Tanh, jax.numpy.tanh),
    "tanh, a function": Activation(lambda: torch.tanh, jax.nn.tanh),
    "sigmoid": Activation(nn.Sigmoid, jax.nn.sigmoid),
    "elu": Activation(nn.ELU, jax.nn.elu),
    "selu": Activation(nn.SELU, jax.nn.selu),
    "celu": Activation(nn.CELU, jax.nn.celu),
    "leaky relu": Activation(nn.LeakyReLU, jax.nn.leaky_relu),
    "leaky relu, 0.2": Activation(lambda: nn.LeakyReLU(0.2), lambda x: jax.nn.leaky_relu(x, 0.2)),
    "softplus": Activation(nn.Softplus, jax.nn.softplus),
    "softsign": Activation(nn.Softsign, jax.nn.soft_sign),
    "mish": Activation(nn.Mish, jax.nn.mish),
    "log sigmoid": Activation(nn.LogSigmoid, jax.nn.log_sigmoid),
    "hard swish": Activation(nn.Hardswish, jax.nn.hard_swish),
    "hard sigmoid": Activation(nn.Hardsigmoid, jax.nn.hard_sigmoid),
    "hard tanh": Activation(nn.Hardtanh, jax.nn.hard_tanh),
    "relu, squared": Activation(lambda: lambda x: F.relu(x).square(), lambda x: jax.numpy.square(jax.nn.relu(x))),
}

# Activations that most models have are drawn as often as all others.
COMMON = ("relu", "gelu", "gelu, a function", "gelu of tanh", "silu")


@dataclass(frozen=True)
class Choices:
    """How one block is made. Each kind of block reads what it needs.

    Attributes:
        block: its row of `BLOCKS`.
        norm: the row of `NORMS` in front of the block (`before`) or behind the sum; empty without one.
        scaled: whether a vector of parameters scales the branch, as in CaiT and ConvNeXt.
        path: part of the branches that stochastic depth drops.
        rate: part of the values that dropout drops.
        keys: heads of keys and values; fewer than `heads` in grouped-query attention.
        pinned: whether a side computes softmax, own norms and tables in float32.
        fused: whether a side has one projection of query, key and value, or of gate and value.
        product: how a side writes products of attention; `MASKS` says how it hides the future.
    """

    block: str
    shape: Shape
    norm: str = ""
    before: bool = True
    residual: bool = True
    scaled: bool = False
    path: float = 0.0
    act: str = "relu"
    rate: float = 0.0
    bias: bool = True
    hidden: int = 8
    heads: int = 2
    keys: int = 2
    causal: bool = False
    rotary: bool = False
    epsilon: float = 1e-5
    kernel: int = 3
    groups: int = 1
    pinned: Sides = (False, False)
    fused: Sides = (False, False)
    product: Sides = ("matmul", "einsum")
    hiding: Sides = ("infinity", "infinity")

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def depth(self) -> int:
        """Features of one head."""
        return self.width // self.heads

    @property
    def torch_act(self) -> Callable[[Any], Any]:
        """A new activation for a PyTorch module."""
        return ACTIVATIONS[self.act].torch()

    @property
    def jax_act(self) -> Callable[[Any], Any]:
        return ACTIVATIONS[self.act].jax


def drawn(rng: random.Random, block: str, shape: Shape, norms: tuple[str, ...]) -> Choices:
    """Return random choices for a block.

    Args:
        norms: the rows of `NORMS` for what flows here.
    """

    def sides(options: tuple[Any, ...], chance: float = 1.0) -> Sides:
        return tuple(rng.choice(options) if rng.random() < chance else options[0] for _ in range(2))

    heads = rng.choice([1, 2, 2, 4])
    return Choices(
        block,
        shape,
        norm=rng.choice(norms) if rng.random() < 0.75 else "",
        before=rng.random() < 0.7,
        residual=rng.random() < 0.75,
        scaled=rng.random() < 0.25,
        path=rng.choice([0.0, 0.0, 0.1, 0.25]),
        act=rng.choice(COMMON if rng.random() < 0.5 else [*ACTIVATIONS]),
        rate=rng.choice([0.0, 0.1, 0.2, 0.5]),
        bias=rng.random() < 0.7,
        hidden=rng.choice([1, 2, 4]) * shape.width // 2 * 2,
        heads=heads,
        keys=rng.choice([heads, heads, max(1, heads // 2), 1]),
        causal=rng.random() < 0.4,
        rotary=rng.random() < 0.4,
        epsilon=rng.choice([1e-5, 1e-5, 1e-6, 1e-3]),
        kernel=rng.choice([1, 3, 3, 5]),
        groups=rng.choice([1, 1, 2]),
        pinned=sides((False, True), 0.8),
        fused=sides((False, True)),
        product=(rng.choice(("matmul", "einsum", "function")), rng.choice(("matmul", "einsum", "function"))),
        hiding=sides(("infinity", "smallest", "-1e9")),
    )
