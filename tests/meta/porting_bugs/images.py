"""What stands around a bug in a vision transformer: patches, a class token, positions, two residual layers, and a head.

Images are (batch, 3, 12, 8) in PyTorch, (batch, 12, 8, 3) in the port. A bug replaces one of the methods.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from .surroundings import WIDTH, PortAttention, PortLayer, TorchAttention, TorchLayer

PATCH, ROWS, COLUMNS, CLASSES = 4, 3, 2, 5


class TorchWholeAttention(TorchAttention):
    causal = False


class PortWholeAttention(PortAttention):
    causal = False


class TorchImageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + ROWS * COLUMNS, WIDTH))
        self.blocks = nn.ModuleList(TorchLayer("attn", TorchWholeAttention()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Cut images into rows of patches: (batch, patches, rows in a patch, columns in it, channels) as one vector."""
        cut = images.unflatten(2, (-1, PATCH)).unflatten(4, (-1, PATCH))
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.tokens(self.patch_embed(self.patches(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(self.norm(x)))


class PortImageModel(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.patch_embed = nnx.Linear(3 * PATCH * PATCH, WIDTH, rngs=rngs)
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        self.pos_embed = nnx.Param(jax.random.normal(rngs.params(), (1, 1 + ROWS * COLUMNS, WIDTH)))
        self.blocks = nnx.List(PortLayer("attn", PortWholeAttention(rngs, wrong), rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def patches(self, images: jax.Array) -> jax.Array:
        """Cut images into rows of patches."""
        batch, height, width, channels = images.shape
        cut = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
        return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, PATCH * PATCH * channels)

    def tokens(self, x: jax.Array) -> jax.Array:
        token = jnp.broadcast_to(self.cls_token[...], (len(x), 1, WIDTH))
        return jnp.concatenate((token, x), 1) + self.pos_embed[...]

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0]

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.tokens(self.patch_embed(self.patches(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(self.norm(x)))
