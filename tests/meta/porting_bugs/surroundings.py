"""What stands around a bug in a language model: an embedding, two residual layers, and a head.

Each layer is `layers.N`, with an `input_layernorm` and the part with the bug, whose name the bug gives (`self_attn`,
`mlp`). A part takes and gives (batch, length, `WIDTH`). `TorchAttention` and `PortAttention` are parts that lack a bug:
a bug replaces what they do between their projections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

WIDTH, HEADS, DEPTH, VOCABULARY = 32, 4, 8, 50
EXPERTS, CHOSEN = 4, 2


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

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(ids)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(x)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.logits(x)


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

    def embed(self, ids: jax.Array) -> jax.Array:
        return self.embed_tokens(ids)

    def logits(self, x: jax.Array) -> jax.Array:
        return self.lm_head(x)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.logits(x)


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


class TorchMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.silu(self.fc1(x)))


class PortMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.silu(self.fc1(x)))


class TorchNormed(nn.Module):
    """A norm of the bug's own, and a network behind it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = norm, TorchMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x))


class PortNormed(nnx.Module):
    def __init__(self, norm: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs) -> None:
        self.norm, self.mlp = norm, PortMlp(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(self.norm(x))


class TorchExperts(nn.Module):
    """A sum over experts; `route` gives the weights and numbers (…, `CHOSEN`) of those that are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(TorchMlp() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.route(self.router(x))
        dense = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype).scatter(-1, chosen, weights)
        return torch.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


class PortExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, wrong: bool) -> None:
        self.wrong = wrong
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.experts = nnx.List(PortMlp(rngs) for _ in range(EXPERTS))

    def __call__(self, x: jax.Array) -> jax.Array:
        weights, chosen = self.route(self.router(x))
        dense = (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * weights[..., None]).sum(-2)
        return jnp.stack([dense[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)

    def route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError


class TorchAttention(nn.Module):
    """Causal attention; `attend` takes and gives (batch, heads, length, depth)."""

    causal = True

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kv_heads * DEPTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, kv_heads * DEPTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (-1, DEPTH)).transpose(1, 2) for part in parts)
        return self.o_proj(self.attend(q, k, v).transpose(1, 2).flatten(-2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


class PortAttention(nnx.Module):
    """The same; `attend` takes and gives (batch, length, heads, depth)."""

    causal = True

    def __init__(self, rngs: nnx.Rngs, wrong: bool, kv_heads: int = HEADS) -> None:
        self.wrong = wrong
        self.q_proj, self.k_proj = (nnx.Linear(WIDTH, n * DEPTH, rngs=rngs) for n in (HEADS, kv_heads))
        self.v_proj, self.o_proj = (nnx.Linear(WIDTH, n * DEPTH, rngs=rngs) for n in (kv_heads, HEADS))

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.reshape(*x.shape[:2], -1, DEPTH) for part in parts)
        return self.o_proj(self.attend(q, k, v).reshape(x.shape))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)


def torch_rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of (batch, heads, length, depth) by angles (length, depth / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def port_rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the halves of (batch, length, heads, depth) by angles (length, depth / 2)."""
    a, b = jnp.split(x, 2, -1)
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def torch_causal(length: int) -> torch.Tensor:
    """Return the mask (length, length) that is true where a key is not later than a query."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def port_causal(length: int) -> jax.Array:
    """Return the same mask."""
    return jnp.tril(jnp.ones((length, length), bool))
