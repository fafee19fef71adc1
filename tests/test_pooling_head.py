"""A Vision Transformer whose head pools with attention: timm's names against big_vision's.

Two blocks of width 8 have two projections as large as one layer of the head, which has twice the width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn

import parity

pytestmark = pytest.mark.usefixtures("quick")


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention with two heads of (batch, length, width)."""
    q, k, v = (a.unflatten(-1, (2, -1)).transpose(1, 2) for a in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PooledTorch(nn.Module):
    """Blocks of attention, and a head that pools with attention: timm's names."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.proj(attended(*self.qkv(x).chunk(3, -1)))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.relu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8, 1e-6), nn.LayerNorm(8, 1e-6)
            self.attn, self.mlp = PooledTorch.Attention(), PooledTorch.Mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.randn(1, 1, 8))
            self.q, self.kv, self.proj = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)
            self.norm, self.mlp = nn.LayerNorm(8, 1e-6), PooledTorch.Mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.q(self.latent.expand(len(x), -1, -1))
            x = self.proj(attended(q, *self.kv(x).chunk(2, -1)))
            return (x + self.mlp(self.norm(x)))[:, 0]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PooledTorch.Block() for _ in range(2))
        self.norm, self.attn_pool = nn.LayerNorm(8, 1e-6), PooledTorch.Pool()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.attn_pool(self.norm(x))


class MlpBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(8)(linen.relu(linen.Dense(16)(x)))


class EncoderBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(2)(y, y)
        return x + MlpBlock()(linen.LayerNorm()(x))


class Encoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(2):
            x = EncoderBlock(name=f"encoderblock_{number}")(x)
        return linen.LayerNorm(name="encoder_norm")(x)


class MAPHead(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        probe = self.param("probe", linen.initializers.xavier_uniform(), (1, 1, 8))
        x = linen.MultiHeadDotProductAttention(2)(jnp.tile(probe, (len(x), 1, 1)), x)
        return (x + MlpBlock()(linen.LayerNorm()(x)))[:, 0]


class Pooled(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return MAPHead()(Encoder(name="Transformer")(x))


def test_the_layers_of_the_head_are_no_parts_of_the_blocks() -> None:
    torch.manual_seed(0)
    model, x = PooledTorch(), np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    port = Pooled()
    moved = parity.move(model, (port, port.init(jax.random.key(0), x)), x)
    report = parity.check(model, moved, x, steps=1)
    assert report, report.failure()
