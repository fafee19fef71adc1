"""Linen models whose layers have the names that Linen gives them, against PyTorch models with names of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn

import parity

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, HEADS, LENGTH = 8, 2, 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, LENGTH, WIDTH)).astype(np.float32)


class Attention(nn.Module):
    """One projection of query, key and value, or three."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.qkv(x).chunk(3, -1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in both)
        weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, fused: bool, epsilon: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, epsilon), nn.LayerNorm(WIDTH, epsilon)
        self.attn = Attention(fused)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(torch.tanh(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, fused: bool, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(fused, epsilon) for _ in range(2))
        self.last = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions(torch.arange(LENGTH))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(HEADS)(y, y)
        y = linen.tanh(linen.Dense(2 * WIDTH)(linen.LayerNorm()(x)))
        return x + linen.Dense(WIDTH)(y), None


class LinenEncoder(linen.Module):
    scan: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.param("pos_embedding", linen.initializers.normal(), (1, LENGTH, WIDTH))
        if self.scan:
            block = linen.remat(LinenBlock, prevent_cse=False)
            x, _ = linen.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x, None)
        else:
            for i in range(2):
                x, _ = LinenBlock(name=f"encoderblock_{i}")(x)
        return linen.LayerNorm()(x)


def pair(ours: nn.Module, port: linen.Module, *inputs: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    moved = tuple(jnp.moveaxis(jnp.asarray(x), 1, -1) if x.ndim == 4 else x for x in inputs)
    return ours.eval(), parity.move(ours, (port, port.init(jax.random.key(0), *moved)), *inputs)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("fused", "scan"), [(False, False), (True, False), (True, True)], ids=["separate", "fused", "fused-scan"]
)
def test_transformer_passes(fused: bool, scan: bool) -> None:
    ours, port = pair(Encoder(fused), LinenEncoder(scan), X)
    report = parity.check(ours, port, X, steps=1)
    assert report, str(report)
    assert not report.models[0].advice


def test_another_epsilon_does_not_hide_which_projection_is_which() -> None:
    ours, port = pair(Encoder(fused=False, epsilon=1e-3), LinenEncoder(), X)
    (model,) = parity.check(ours, port, X, steps=0).models
    assert [finding.trap for finding in model.findings] == ["norm-epsilon-1e-6"]
    assert len(model.findings[0].also) == 3


class Towers(nn.Module):
    """Two branches that do not depend on each other; the projection of the first comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 7))
        self.words = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 6), nn.Linear(6, 5))
        self.projection = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.picture(x), self.words(y)
        return self.projection(x), y


class LinenTowers(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        for width in (WIDTH, 7, 3):
            x = linen.Dense(width)(x)
        for width in (WIDTH, 6, 5):
            y = linen.Dense(width)(y)
        return x, y


def test_branches_in_another_order_are_paired() -> None:
    ours, port = pair(Towers(), LinenTowers(), X, X[::-1])
    report = parity.check(ours, port, X, X[::-1], steps=1)
    assert report, str(report)


class BatchNorm(linen.Module):
    """A norm of one's own, with the names of the library's."""

    train: bool
    momentum: float = 0.9

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", linen.initializers.ones, shape)
        bias = self.param("bias", linen.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        m, v = mean.value, var.value
        if self.train:
            m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
            n = x.size / x.shape[-1]
            mean.value = self.momentum * mean.value + (1 - self.momentum) * m
            var.value = self.momentum * var.value + (1 - self.momentum) * v * n / (n - 1)
        return (x - m) * jax.lax.rsqrt(v + 1e-5) * scale + bias


class Convolutions(linen.Module):
    momentum: float = 0.9

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for _ in range(2):
            x = linen.relu(BatchNorm(train, self.momentum)(linen.Conv(3, (3, 3), use_bias=False)(x)))
        return x


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(m for _ in range(2) for m in (nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()))
    )


IMAGES = RNG.standard_normal((2, 3, 6, 5)).astype(np.float32)


def test_batch_norms_of_ones_own_are_paired_with_their_statistics() -> None:
    ours, port = pair(convolutions(), Convolutions(), IMAGES)
    report = parity.check(ours, port, IMAGES, steps=1)
    assert report, str(report)


def test_momentum_of_a_batch_norm_of_ones_own_is_named() -> None:
    ours, port = pair(convolutions(), Convolutions(momentum=0.1), IMAGES)
    (model,) = parity.check(ours, port, IMAGES, steps=1).models
    assert [finding.trap for finding in model.findings] == ["bn-momentum-copied"]
