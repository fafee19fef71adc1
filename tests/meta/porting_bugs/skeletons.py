"""A small decoder of today's kind in PyTorch and in NNX, for bugs in a part of one.

Attention calls `positioned`, `scored`, `weighted` and `merged`; a bug's module overrides the one that differs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

WIDTH, HEADS, GROUPS, SIZE, VOCABULARY = 16, 4, 2, 8, 24


class TorchRMSNorm(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def torch_rotated(x: torch.Tensor, base: float = 10000.0, factor: float = 1.0, exponent: float = 1.0) -> torch.Tensor:
    """Rotate halves: `factor` divides positions, `exponent` divides the exponents of the frequencies."""
    half = x.shape[-1] // 2
    frequencies = base ** -(torch.arange(half, dtype=x.dtype) / half / exponent)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype) / factor, frequencies)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class TorchAttention(nn.Module):
    def __init__(self, layer: int = 0, heads: int = HEADS, groups: int = GROUPS, size: int = SIZE) -> None:
        super().__init__()
        self.layer, self.heads, self.groups, self.size = layer, heads, groups, size
        self.q_proj = nn.Linear(WIDTH, heads * size, bias=False)
        self.k_proj = nn.Linear(WIDTH, groups * size, bias=False)
        self.v_proj = nn.Linear(WIDTH, groups * size, bias=False)
        self.o_proj = nn.Linear(heads * size, WIDTH, bias=False)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, self.size).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q, k = self.positioned(q), self.positioned_key(k)
        k, v = (array.repeat_interleave(self.heads // self.groups, 1) for array in (k, v))
        return self.o_proj(self.merged(self.weighted(self.scored(q, k)) @ v))

    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        return torch_rotated(q)

    def positioned_key(self, k: torch.Tensor) -> torch.Tensor:
        return self.positioned(k)

    def scored(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q @ k.transpose(-1, -2) * self.size**-0.5

    def visible(self, length: int) -> torch.Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril()

    def weighted(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~self.visible(scores.shape[-1]), -torch.inf).softmax(-1)

    def merged(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).flatten(2)


class TorchMlp(nn.Module):
    def __init__(self, layer: int = 0, width: int = 32) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, width, bias=False)
        self.up_proj = nn.Linear(WIDTH, width, bias=False)
        self.down_proj = nn.Linear(width, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class TorchLayer(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = TorchRMSNorm(), TorchRMSNorm()
        self.self_attn, self.mlp = attention, mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class TorchDecoder(nn.Module):
    def __init__(
        self,
        attention: Callable[[int], nn.Module] = TorchAttention,
        mlp: Callable[[int], nn.Module] = TorchMlp,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(TorchLayer(attention(i), mlp(i)) for i in range(2))
        self.norm = TorchRMSNorm()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def linear(inputs: int, outputs: int) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=nnx.Rngs(0))


class FlaxRMSNorm(nnx.Module):
    def __init__(self, width: int = WIDTH) -> None:
        self.weight = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight[...] * x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def flax_rotated(x: jax.Array, base: float = 10000.0, factor: float = 1.0, exponent: float = 1.0) -> jax.Array:
    """Rotate halves: `factor` divides positions, `exponent` divides the exponents of the frequencies."""
    half = x.shape[-1] // 2
    frequencies = base ** -(jnp.arange(half, dtype=x.dtype) / half / exponent)
    angles = jnp.outer(jnp.arange(x.shape[-2], dtype=x.dtype) / factor, frequencies)
    a, b = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class FlaxAttention(nnx.Module):
    def __init__(
        self, layer: int = 0, wrong: bool = False, heads: int = HEADS, groups: int = GROUPS, size: int = SIZE
    ) -> None:
        self.layer, self.wrong, self.heads, self.groups, self.size = layer, wrong, heads, groups, size
        self.q_proj = linear(WIDTH, heads * size)
        self.k_proj = linear(WIDTH, groups * size)
        self.v_proj = linear(WIDTH, groups * size)
        self.o_proj = linear(heads * size, WIDTH)

    def split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, self.size).swapaxes(1, 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q, k = self.positioned(q), self.positioned_key(k)
        k, v = (jnp.repeat(array, self.heads // self.groups, 1) for array in (k, v))
        return self.o_proj(self.merged(self.weighted(self.scored(q, k)) @ v))

    def positioned(self, q: jax.Array) -> jax.Array:
        return flax_rotated(q)

    def positioned_key(self, k: jax.Array) -> jax.Array:
        return self.positioned(k)

    def scored(self, q: jax.Array, k: jax.Array) -> jax.Array:
        return q @ k.swapaxes(-1, -2) * self.size**-0.5

    def visible(self, length: int) -> jax.Array:
        return jnp.tril(jnp.ones((length, length), bool))

    def weighted(self, scores: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(self.visible(scores.shape[-1]), scores, -jnp.inf), -1)

    def merged(self, x: jax.Array) -> jax.Array:
        batch, _, length, _ = x.shape
        return x.swapaxes(1, 2).reshape(batch, length, -1)


class FlaxMlp(nnx.Module):
    def __init__(self, layer: int = 0, wrong: bool = False, width: int = 32) -> None:
        self.wrong = wrong
        self.gate_proj, self.up_proj = linear(WIDTH, width), linear(WIDTH, width)
        self.down_proj = linear(width, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class FlaxLayer(nnx.Module):
    def __init__(self, attention: nnx.Module, mlp: nnx.Module) -> None:
        self.input_layernorm, self.post_attention_layernorm = FlaxRMSNorm(), FlaxRMSNorm()
        self.self_attn, self.mlp = attention, mlp

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class FlaxDecoder(nnx.Module):
    def __init__(
        self,
        wrong: bool = False,
        attention: Callable[[int, bool], nnx.Module] = FlaxAttention,
        mlp: Callable[[int, bool], nnx.Module] = FlaxMlp,
    ) -> None:
        rngs = nnx.Rngs(0)
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([FlaxLayer(attention(i, wrong), mlp(i, wrong)) for i in range(2)])
        self.norm = FlaxRMSNorm()
        self.lm_head = linear(WIDTH, VOCABULARY)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
