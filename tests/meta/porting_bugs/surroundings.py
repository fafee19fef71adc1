"""What stands around a bug in a language model: an embedding, two residual layers, and a head.

Each layer is `layers.N`, with an `input_layernorm` and the part with the bug, whose name the bug gives (`self_attn`,
`mlp`). A part takes and gives (batch, length, `WIDTH`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import torch
from flax import linen, nnx
from torch import nn

WIDTH, HEADS, DEPTH, VOCABULARY = 16, 2, 8, 50


class TorchLayer(nn.Module):
    def __init__(self, name: str, part: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.input_layernorm = nn.LayerNorm(WIDTH)
        self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + getattr(self, self.name)(self.input_layernorm(x))


class TorchLanguageModel(nn.Module):
    def __init__(self, name: str, part: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(TorchLayer(name, part()) for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class PortLayer(nnx.Module):
    def __init__(self, name: str, part: nnx.Module, rngs: nnx.Rngs) -> None:
        self.name = name
        self.input_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        setattr(self, name, part)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + getattr(self, self.name)(self.input_layernorm(x))


class PortLanguageModel(nnx.Module):
    def __init__(self, name: str, part: Callable[[nnx.Rngs], Any]) -> None:
        rngs = nnx.Rngs(0)
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List(PortLayer(name, part(rngs), rngs) for _ in range(2))
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class LinenLanguageModel(linen.Module):
    """The same in Linen; `part` makes a module under a name."""

    name_of_part: str
    part: Callable[..., linen.Module]

    @linen.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = linen.Embed(VOCABULARY, WIDTH, name="embed_tokens")(ids)
        for i in range(2):
            y = linen.LayerNorm(epsilon=1e-5, name=f"layers_{i}_input_layernorm")(x)
            x = x + self.part(name=f"layers_{i}_{self.name_of_part}")(y)
        return linen.Dense(VOCABULARY, use_bias=False, name="lm_head")(x)
