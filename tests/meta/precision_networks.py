"""Small networks with the precision idioms of real models, in PyTorch and NNX: what faithful runs are drawn from.

What a model computes between its layers is a function of `Ops`, so that a mistake is one other function in the port.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

F = torch.nn.functional
FIRST = 300  # the first position, as behind a cache: bfloat16 holds no such number exactly
HEADS, DEPTH, WIDTH, LENGTH, BATCH, WORDS, EXPERTS = 4, 8, 32, 10, 3, 40, 4


# --- what stands between layers, in JAX


def softmax32(scores: jax.Array) -> jax.Array:
    """Softmax in float32, given back in the type of the scores."""
    return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, softmax: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """(batch, length, heads, depth); causal."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bkhd->bqhd", softmax(scores), v)


def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm in float32, cast before the scale."""
    wide = x.astype(jnp.float32)
    return scale * (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def rms_scaled_wide(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm in float32, cast behind the scale."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)
    return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)


def angles(length: int) -> jax.Array:
    """(length, DEPTH / 2), in float32."""
    frequencies = 100.0 ** -(jnp.arange(0, DEPTH, 2, jnp.float32) / DEPTH)
    return jnp.arange(FIRST, FIRST + length, dtype=jnp.float32)[:, None] * frequencies


def rotated(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotary embedding of (batch, length, heads, depth); tables are made in float32 and rounded to the type of x."""
    both = jnp.concatenate([turns, turns], -1)[None, :, None]
    cos, sin = jnp.cos(both).astype(x.dtype), jnp.sin(both).astype(x.dtype)
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def mixed(parts: jax.Array, gates: jax.Array) -> jax.Array:
    """(batch, length, experts, width) and gates of float32, summed over the experts in float32."""
    return (parts.astype(jnp.float32) * gates[..., None]).sum(2).astype(parts.dtype)


def decayed(x: jax.Array) -> jax.Array:
    """A running mean along the length, whose state is float32."""
    state, out = jnp.zeros(x[:, 0].shape, jnp.float32), []
    for t in range(x.shape[1]):
        state = 0.9 * state + 0.1 * x[:, t].astype(jnp.float32)
        out.append(state)
    return jnp.stack(out, 1).astype(x.dtype)


@dataclass(frozen=True)
class Ops:
    """What a port computes between its layers."""

    act: Callable[[jax.Array], jax.Array] = lambda x: jax.nn.gelu(x, approximate=False)
    softmax: Callable[[jax.Array], jax.Array] = softmax32
    attend: Callable[..., jax.Array] = attend
    rms: Callable[[jax.Array, jax.Array], jax.Array] = rms
    angles: Callable[[int], jax.Array] = angles
    rotated: Callable[[jax.Array, jax.Array], jax.Array] = rotated
    gate: Callable[[jax.Array], jax.Array] = jax.nn.silu
    mixed: Callable[[jax.Array, jax.Array], jax.Array] = mixed
    router: Callable[[jax.Array], jax.Array] = lambda x: jax.nn.softmax(x.astype(jnp.float32), -1)
    decayed: Callable[[jax.Array], jax.Array] = decayed
    pool: Callable[[jax.Array], jax.Array] = lambda x: x.mean((1, 2))
    add: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add
    logits: Callable[[jax.Array], jax.Array] = lambda x: 30 * jnp.tanh(x.astype(jnp.float32) / 30)
    stream: Callable[[jax.Array], jax.Array] = lambda x: x
    embed: Callable[[jax.Array], jax.Array] = lambda x: x * jnp.asarray(math.sqrt(WIDTH), x.dtype)


@dataclass(frozen=True)
class Setting:
    """How a port is made.

    Attributes:
        dtype, param_dtype: of its layers.
        layers: types of some layers, by name.
    """

    dtype: Any = None
    param_dtype: Any = jnp.float32
    ops: Ops = field(default_factory=Ops)
    layers: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> dict[str, Any]:
        """Return the settings of a layer."""
        return {"dtype": self.layers.get(name, self.dtype), "param_dtype": self.param_dtype, "rngs": nnx.Rngs(0)}


# --- the networks, in PyTorch and in NNX


class TorchMlp(nn.Module):
    def __init__(self, act: Callable[[Any], Any] = F.gelu) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 8)
        self.norm, self.act = nn.LayerNorm(WIDTH), act

    def forward(self, x: Any) -> Any:
        x = self.act(self.up(x))
        return self.down(self.act(self.norm(x + self.mid(x))))


class FlaxMlp(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.up, self.down = nnx.Linear(16, WIDTH, **s.of("up")), nnx.Linear(WIDTH, 8, **s.of("down"))
        self.mid = nnx.Linear(WIDTH, WIDTH, use_bias=False, **s.of("mid"))
        self.norm, self.ops = nnx.LayerNorm(WIDTH, epsilon=1e-5, **s.of("norm")), s.ops

    def __call__(self, x: Any) -> Any:
        x = self.ops.act(self.up(x))
        return self.down(self.ops.act(self.norm(self.ops.add(x, self.mid(x)))))


class TorchConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.gn = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn(self.conv1(x)))
        x = x + F.silu(self.gn(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class FlaxConv(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, **s.of("conv1"))
        self.bn = nnx.BatchNorm(8, momentum=0.9, epsilon=1e-5, **s.of("bn"))
        self.conv2 = nnx.Conv(8, 8, (3, 3), padding=1, **s.of("conv2"))
        self.gn = nnx.GroupNorm(8, num_groups=2, epsilon=1e-5, **s.of("gn"))
        self.fc, self.ops = nnx.Linear(8, 5, **s.of("fc")), s.ops

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.bn(self.conv1(x)))
        x = self.ops.add(x, self.ops.gate(self.gn(self.conv2(x))))
        return self.fc(self.ops.pool(x))


class TorchAttention(nn.Module):
    """Softmax in float32, or PyTorch's fused attention; with `turns` a rotary embedding."""

    def __init__(self, bias: bool = True, fused: bool = False, turns: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(4))
        self.fused, self.turns = fused, turns

    def forward(self, x: Any) -> Any:
        q, k, v = (f(x).unflatten(-1, (HEADS, DEPTH)) for f in (self.q, self.k, self.v))
        if self.turns:
            q, k = torch_rotated(q), torch_rotated(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True) if self.fused else torch_attend(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


class TorchFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.down(F.gelu(self.up(x)))


class TorchEncoder(nn.Module):
    """A block; with `wide` its residual stream is float32."""

    def __init__(self, fused: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp, self.wide = TorchAttention(fused=fused), TorchFeedForward(), wide

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        dtype = x.dtype
        x = x.float() + self.place.float() if self.wide else x + self.place
        x = x + self.attn(self.norm1(x.to(dtype)))
        return x + self.mlp(self.norm2(x.to(dtype)))


def torch_attend(q: Any, k: Any, v: Any) -> Any:
    """(batch, heads, length, depth); causal, softmax in float32."""
    scores = q @ k.transpose(-2, -1) * DEPTH**-0.5
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v


class FlaxAttention(nnx.Module):
    def __init__(self, s: Setting, bias: bool = True, turns: bool = False) -> None:
        self.q, self.k, self.v, self.o = (nnx.Linear(WIDTH, WIDTH, use_bias=bias, **s.of(f"attn.{n}")) for n in "qkvo")
        self.ops, self.turns = s.ops, turns

    def __call__(self, x: Any) -> Any:
        q, k, v = (f(x).reshape(*x.shape[:2], HEADS, DEPTH) for f in (self.q, self.k, self.v))
        if self.turns:
            turns = self.ops.angles(x.shape[1])
            q, k = self.ops.rotated(q, turns), self.ops.rotated(k, turns)
        return self.o(self.ops.attend(q, k, v, self.ops.softmax).reshape(x.shape))


class FlaxFeedForward(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, **s.of("mlp.up"))
        self.down, self.ops = nnx.Linear(2 * WIDTH, WIDTH, **s.of("mlp.down")), s.ops

    def __call__(self, x: Any) -> Any:
        return self.down(self.ops.act(self.up(x)))


class FlaxEncoder(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.embed = nnx.Embed(WORDS, WIDTH, **s.of("embed"))
        self.place = nnx.Param(jnp.zeros((LENGTH, WIDTH), s.param_dtype))
        self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, epsilon=1e-5, **s.of(n)) for n in ("norm1", "norm2"))
        self.attn, self.mlp, self.ops = FlaxAttention(s), FlaxFeedForward(s), s.ops

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        dtype = x.dtype
        x = self.ops.add(self.ops.stream(x), self.place[...].astype(dtype))
        x = self.ops.add(x, self.attn(self.norm1(x.astype(dtype))))
        return self.ops.add(x, self.mlp(self.norm2(x.astype(dtype))))


class TorchRms(nn.Module):
    """With `wide` the scale is applied in float32, as 1 + scale."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.weight, self.wide = nn.Parameter(torch.randn(WIDTH)), wide

    def forward(self, x: Any) -> Any:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype) if self.wide else self.weight * y.to(x.dtype)


class FlaxRms(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.weight, self.dtype, self.ops = nnx.Param(jnp.zeros(WIDTH, s.param_dtype)), s.dtype, s.ops

    def __call__(self, x: Any) -> Any:
        return self.ops.rms(x, self.weight[...].astype(x.dtype))


class TorchExperts(nn.Module):
    """Gated experts; router and sum are float32."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, EXPERTS * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        gates = torch.softmax(self.router(x).float(), -1)
        parts = (F.silu(self.gate(x)) * self.up(x)).unflatten(-1, (EXPERTS, WIDTH))
        return self.down((parts.float() * gates[..., None]).sum(2).to(x.dtype))


class TorchDecoder(nn.Module):
    """RMSNorm, rotary embedding, experts, a running mean, a head whose logits are bounded in float32."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm1, self.norm2, self.norm3 = (TorchRms(wide) for _ in range(3))
        self.attn, self.experts = TorchAttention(bias=False, turns=True), TorchExperts()
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        x = x * torch.tensor(math.sqrt(WIDTH), dtype=x.dtype)
        x = x + self.attn(self.norm1(x))
        x = x + self.experts(self.norm2(x))
        return 30 * torch.tanh(self.head(self.norm3(torch_decayed(x))).float() / 30)


def torch_rotated(x: Any) -> Any:
    """(batch, length, heads, depth)."""
    place = torch.arange(FIRST, FIRST + x.shape[1], dtype=torch.float32)
    turns = place[:, None] * 100.0 ** -(torch.arange(0, DEPTH, 2, dtype=torch.float32) / DEPTH)
    both = torch.cat([turns, turns], -1)[None, :, None]
    cos, sin = both.cos().to(x.dtype), both.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def torch_decayed(x: Any) -> Any:
    """A running mean along the length, whose state is float32."""
    state, out = torch.zeros(x[:, 0].shape, dtype=torch.float32), []
    for t in range(x.shape[1]):
        state = 0.9 * state + 0.1 * x[:, t].float()
        out.append(state)
    return torch.stack(out, 1).to(x.dtype)


class FlaxExperts(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, **s.of("experts.router"))
        self.gate, self.up = (
            nnx.Linear(WIDTH, EXPERTS * WIDTH, use_bias=False, **s.of(f"experts.{n}")) for n in ("gate", "up")
        )
        self.down, self.ops = nnx.Linear(WIDTH, WIDTH, use_bias=False, **s.of("experts.down")), s.ops

    def __call__(self, x: Any) -> Any:
        gates = self.ops.router(self.router(x))
        parts = (self.ops.gate(self.gate(x)) * self.up(x)).reshape(*x.shape[:2], EXPERTS, WIDTH)
        return self.down(self.ops.mixed(parts, gates))


class FlaxDecoder(nnx.Module):
    def __init__(self, s: Setting) -> None:
        self.embed = nnx.Embed(WORDS, WIDTH, **s.of("embed"))
        self.norm1, self.norm2, self.norm3 = (FlaxRms(s) for _ in range(3))
        self.attn, self.experts, self.ops = FlaxAttention(s, bias=False, turns=True), FlaxExperts(s), s.ops
        self.head = nnx.Linear(WIDTH, WORDS, use_bias=False, **s.of("head"))

    def __call__(self, tokens: Any) -> Any:
        x = self.ops.embed(self.embed(tokens))
        x = self.ops.add(x, self.attn(self.norm1(x)))
        x = self.ops.add(x, self.experts(self.norm2(x)))
        return self.ops.logits(self.head(self.norm3(self.ops.decayed(x))))


def numbers(rng: np.random.Generator) -> np.ndarray:
    """Inputs of the MLP."""
    return rng.standard_normal((BATCH, LENGTH, 16)).astype(np.float32)


def pictures(rng: np.random.Generator) -> np.ndarray:
    """Inputs of the convolutions."""
    return rng.standard_normal((BATCH, 3, 9, 8)).astype(np.float32)


def words(rng: np.random.Generator) -> np.ndarray:
    """Inputs of encoder and decoder."""
    return rng.integers(0, WORDS, (BATCH, LENGTH))
