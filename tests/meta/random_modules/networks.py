"""Networks of drawn blocks: an input, blocks with norm, scale, stochastic depth and residual, and a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

from .attention import ATTENTION
from .block import Block
from .choices import Choices, Shape
from .convolutions import CONVOLUTIONS
from .dense import DENSE
from .norms import NORMS
from .recurrences import RECURRENCES

BLOCKS: dict[str, Block] = {**DENSE, **ATTENTION, **CONVOLUTIONS, **RECURRENCES}
WORDS, FEATURES = 11, 3

# What a network takes: what flows behind its first layer.
INPUTS = {"tokens": "sequence", "series": "sequence", "patches": "sequence", "images": "image", "features": "vector"}
# What a head makes of it, by what flows.
HEADS = {"sequence": ("mean", "last", "each", "pooled by weights"), "image": ("mean", "flat"), "vector": ("each",)}


@dataclass(frozen=True)
class Program:
    """A network.

    Attributes:
        port: `nnx` or `linen`.
        inputs: a row of `INPUTS`.
        size: of the input without batch and channels: length, or height and width.
        positions: whether learned positions are added.
        features: what the flat head of an image takes.
    """

    port: str
    inputs: str
    shape: Shape
    size: tuple[int, ...]
    batch: int
    blocks: tuple[Choices, ...]
    norm: Choices | None
    head: str
    classes: int
    positions: bool = False
    features: int = 0


# --- PyTorch


class TorchStep(nn.Module):
    """One block, with what stands around it."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.s, self.image = s, s.shape.kind == "image"
        if s.norm:
            self.norm = NORMS[s.norm].torch(s)
        self.body = BLOCKS[s.block].torch(s)
        if s.scaled:
            self.gamma = nn.Parameter(torch.full((s.width,), 0.5))

    def forward(self, x: Any) -> Any:
        s = self.s
        y = self.body(self.norm(x) if s.norm and s.before else x)
        if s.scaled:
            y = y * (self.gamma[:, None, None] if self.image else self.gamma)
        y = x + torch_path(y, s.path, self.training) if s.residual else y
        return self.norm(y) if s.norm and not s.before else y


def torch_path(y: Any, rate: float, train: bool) -> Any:
    """Stochastic depth as timm writes it; high rates as others do, with uniform numbers below the part that is kept."""
    if not rate or not train:
        return y
    shape = (y.shape[0],) + (1,) * (y.ndim - 1)
    if rate > 0.2:
        return y / (1 - rate) * (torch.rand(shape) < 1 - rate).to(y.dtype)
    mask = y.new_empty(shape).bernoulli_(1 - rate)
    return y * mask.div_(1 - rate)


class TorchNetwork(nn.Module):
    def __init__(self, p: Program) -> None:
        super().__init__()
        self.p, width = p, p.shape.width
        if p.inputs == "tokens":
            self.embed = nn.Embedding(WORDS, width)
        elif p.inputs in ("series", "features"):
            self.embed = nn.Linear(FEATURES, width)
        else:
            size = 2 if p.inputs == "patches" else 3
            self.embed = nn.Conv2d(FEATURES, width, size, stride=2 if size == 2 else 1, padding=0 if size == 2 else 1)
        if p.positions:
            self.positions = nn.Parameter(torch.randn(1, p.shape.length, width) * 0.1)
        self.blocks = nn.ModuleList(TorchStep(s) for s in p.blocks)
        if p.norm:
            self.norm = NORMS[p.norm.norm].torch(p.norm)
        if p.head == "pooled by weights":
            self.pool = nn.Linear(width, 1)
        self.head = nn.Linear(p.features or width, p.classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.reduced(self.trunk(x)))

    def trunk(self, x: Any) -> Any:
        x = self.embed(x)
        if self.p.inputs == "patches":
            x = x.flatten(2).transpose(1, 2)
        if self.p.positions:
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if self.p.norm else x

    def reduced(self, x: Any) -> Any:
        match self.p.head:
            case "mean":
                return x.mean((2, 3) if x.ndim == 4 else 1)
            case "last":
                return x[:, -1]
            case "flat":
                return torch.flatten(x, 1)
            case "pooled by weights":
                return torch.einsum("blo,bld->bd", self.pool(x).softmax(1), x)
            case _:
                return x


# --- NNX


class NnxDropPath(nnx.Module):
    def __init__(self, rate: float, rngs: nnx.Rngs) -> None:
        self.rate, self.deterministic, self.rngs = rate, False, rngs.fork()

    def __call__(self, y: Any) -> Any:
        if not self.rate or self.deterministic:
            return y
        return jax_path(y, self.rate, self.rngs.dropout())


def jax_path(y: Any, rate: float, key: Any) -> Any:
    mask = jax.random.bernoulli(key, 1 - rate, (y.shape[0],) + (1,) * (y.ndim - 1))
    return jnp.where(mask, y / (1 - rate), 0)


class NnxStep(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        make = BLOCKS[s.block].nnx
        assert make is not None, s.block
        if s.norm:
            norm = NORMS[s.norm].nnx
            assert norm is not None, s.norm
            self.norm = norm(s, rngs)
        self.body, self.s = make(s, rngs), s
        if s.scaled:
            self.gamma = nnx.Param(jnp.full((s.width,), 0.5))
        self.path = NnxDropPath(s.path, rngs)

    def __call__(self, x: Any) -> Any:
        s = self.s
        y = self.body(self.norm(x) if s.norm and s.before else x)
        y = y * self.gamma[...] if s.scaled else y
        y = x + self.path(y) if s.residual else y
        return self.norm(y) if s.norm and not s.before else y


class NnxNetwork(nnx.Module):
    def __init__(self, p: Program, rngs: nnx.Rngs) -> None:
        width = p.shape.width
        self.p = p
        self.embed: Any
        if p.inputs == "tokens":
            self.embed = nnx.Embed(WORDS, width, rngs=rngs)
        elif p.inputs in ("series", "features"):
            self.embed = nnx.Linear(FEATURES, width, rngs=rngs)
        elif p.inputs == "patches":
            self.embed = nnx.Conv(FEATURES, width, (2, 2), strides=2, padding="VALID", rngs=rngs)
        else:
            self.embed = nnx.Conv(FEATURES, width, (3, 3), padding=1, rngs=rngs)
        if p.positions:
            self.positions = nnx.Param(jnp.zeros((1, p.shape.length, width)))
        self.blocks = nnx.List([NnxStep(s, rngs) for s in p.blocks])
        if p.norm:
            norm = NORMS[p.norm.norm].nnx
            assert norm is not None, p.norm.norm
            self.norm = norm(p.norm, rngs)
        if p.head == "pooled by weights":
            self.pool = nnx.Linear(width, 1, rngs=rngs)
        self.head = nnx.Linear(p.features or width, p.classes, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        if self.p.inputs == "patches":
            x = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.p.positions:
            x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x) if self.p.norm else x
        return self.head(jax_reduced(x, self.p.head, lambda: self.pool(x)))


def jax_reduced(x: Any, head: str, weights: Any) -> Any:
    match head:
        case "mean":
            return x.mean((1, 2) if x.ndim == 4 else 1)
        case "last":
            return x[:, -1]
        case "flat":
            return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        case "pooled by weights":
            return (jax.nn.softmax(weights(), axis=1) * x).sum(1)
        case _:
            return x


# --- Linen


class LinenStep(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        y = NORMS[s.norm].linen(s, "norm", x, train) if s.norm and s.before else x
        y = BLOCKS[s.block].linen(s, "body", y, train)
        y = y * self.param("gamma", linen.initializers.constant(0.5), (s.width,)) if s.scaled else y
        if s.residual:
            y = x + (jax_path(y, s.path, self.make_rng("dropout")) if train and s.path else y)
        return NORMS[s.norm].linen(s, "norm", y, train) if s.norm and not s.before else y


class LinenNetwork(linen.Module):
    p: Program

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        p, width = self.p, self.p.shape.width
        if p.inputs == "tokens":
            x = linen.Embed(WORDS, width, name="embed")(x)
        elif p.inputs in ("series", "features"):
            x = linen.Dense(width, name="embed")(x)
        elif p.inputs == "patches":
            x = linen.Conv(width, (2, 2), strides=(2, 2), padding="VALID", name="embed")(x)
            x = x.reshape(x.shape[0], -1, width)
        else:
            x = linen.Conv(width, (3, 3), padding=1, name="embed")(x)
        if p.positions:
            x = x + self.param("positions", linen.initializers.normal(), (1, p.shape.length, width))
        for i, s in enumerate(p.blocks):
            x = LinenStep(s, name=f"blocks_{i}")(x, train)
        x = NORMS[p.norm.norm].linen(p.norm, "norm", x, train) if p.norm else x
        x = jax_reduced(x, p.head, lambda: linen.Dense(1, name="pool")(x))
        return linen.Dense(p.classes, name="head")(x)
