"""Attention: the libraries' layers, and what models write themselves with one product or another."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional as F

from .block import ANY, SEQUENCE, VECTOR, Block, in_linen
from .choices import Choices

# Images are sequences of pixels here.
PLACES = ANY - VECTOR


def torch_rows(x: Any) -> Any:
    """Return (batch, length, features)."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def torch_back(y: Any, x: Any) -> Any:
    """Return rows in the shape of x."""
    return y.transpose(1, 2).reshape(x.shape) if x.ndim == 4 else y


def jax_rows(x: Any) -> Any:
    return x.reshape(x.shape[0], -1, x.shape[-1])


# --- the libraries' layers


class TorchLibrary(nn.Module):
    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.attn, self.s = nn.MultiheadAttention(s.width, s.heads, dropout=s.rate, batch_first=True), s

    def forward(self, x: Any) -> Any:
        rows = torch_rows(x)
        hidden = None
        if self.s.causal:
            hidden = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return torch_back(self.attn(rows, rows, rows, attn_mask=hidden, need_weights=False)[0], x)


class NnxLibrary(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.attn = nnx.MultiHeadAttention(s.heads, s.width, dropout_rate=s.rate, decode=False, rngs=rngs)
        self.s = s

    def __call__(self, x: Any) -> Any:
        rows = jax_rows(x)
        mask = nnx.make_causal_mask(rows[..., 0]) if self.s.causal else None
        return self.attn(rows, mask=mask).reshape(x.shape)


class LinenLibrary(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        rows, s = jax_rows(x), self.s
        mask = linen.make_causal_mask(rows[..., 0]) if s.causal else None
        attn = linen.MultiHeadDotProductAttention(s.heads, dropout_rate=s.rate, deterministic=not train, name="attn")
        return attn(rows, mask=mask).reshape(x.shape)


# --- rotary embedding


def torch_rotated(x: Any, s: Choices) -> Any:
    """(batch, heads, length, depth): the halves of a head are rotated; pinned, the tables are float32."""
    dtype = torch.float32 if s.pinned[0] else x.dtype
    frequencies = 1.0 / 100.0 ** (torch.arange(0, s.depth, 2, dtype=dtype, device=x.device) / s.depth)
    angles = torch.outer(torch.arange(x.shape[2], dtype=dtype, device=x.device), frequencies)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def jax_rotated(x: Any, s: Choices) -> Any:
    """(batch, length, heads, depth); pinned, numpy makes the tables in float32."""
    if s.pinned[1]:
        frequencies = 1.0 / 100.0 ** (np.arange(0, s.depth, 2, dtype=np.float32) / s.depth)
        angles = jnp.asarray(np.arange(x.shape[1], dtype=np.float32)[:, None] * frequencies)
    else:
        frequencies = 1.0 / 100.0 ** (jnp.arange(0, s.depth, 2) / s.depth)
        angles = jnp.arange(x.shape[1])[:, None] * frequencies
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# --- attention that a model writes itself


class TorchAttention(nn.Module):
    def __init__(self, s: Choices) -> None:
        super().__init__()
        keys = s.keys * s.depth
        if s.fused[0]:
            self.qkv_proj = nn.Linear(s.width, s.width + 2 * keys, bias=s.bias)
        else:
            self.q_proj = nn.Linear(s.width, s.width, bias=s.bias)
            self.k_proj, self.v_proj = nn.Linear(s.width, keys, bias=s.bias), nn.Linear(s.width, keys, bias=s.bias)
        self.o_proj, self.s = nn.Linear(s.width, s.width, bias=s.bias), s
        self.drop = nn.Dropout(s.rate)

    def forward(self, x: Any) -> Any:
        s, rows = self.s, torch_rows(x)
        if s.fused[0]:
            parts = self.qkv_proj(rows).split([s.width, s.keys * s.depth, s.keys * s.depth], -1)
        else:
            parts = self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)
        q, k, v = (part.unflatten(-1, (-1, s.depth)).transpose(1, 2) for part in parts)
        if s.rotary and s.depth % 2 == 0:
            q, k = torch_rotated(q, s), torch_rotated(k, s)
        k, v = (part.repeat_interleave(s.heads // s.keys, 1) for part in (k, v))
        if s.product[0] == "function":
            rate = s.rate if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=s.causal)
        else:
            y = self.attended(q, k, v)
        return torch_back(self.o_proj(y.transpose(1, 2).flatten(2)), x)

    def attended(self, q: Any, k: Any, v: Any) -> Any:
        s = self.s
        if s.product[0] == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * s.depth**-0.5
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(s.depth)
        if s.causal:
            low = {"infinity": -math.inf, "smallest": torch.finfo(scores.dtype).min, "-1e9": -1e9}[s.hiding[0]]
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~seen, low)
        weights = F.softmax(scores, -1, dtype=torch.float32).to(v.dtype) if s.pinned[0] else scores.softmax(-1)
        return self.drop(weights) @ v


def jax_attended(q: Any, k: Any, v: Any, s: Choices, drop: Any) -> Any:
    """(batch, length, heads, depth) of each."""
    if s.product[1] == "function" and not s.rate:
        return jax.nn.dot_product_attention(q, k, v, is_causal=s.causal)
    k, v = (jnp.repeat(part, s.heads // s.keys, 2) for part in (k, v))
    if s.product[1] == "matmul":
        scores = q.swapaxes(1, 2) @ k.transpose(0, 2, 3, 1) / math.sqrt(s.depth)
    else:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * s.depth**-0.5
    if s.causal:
        low = {"infinity": -jnp.inf, "smallest": jnp.finfo(scores.dtype).min, "-1e9": -1e9}[s.hiding[1]]
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, low)
    weights = jax.nn.softmax(scores.astype(jnp.float32) if s.pinned[1] else scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", drop(weights), v)


def jax_heads(parts: Any, s: Choices) -> Any:
    """Return query, key and value of each head, rotated."""
    q, k, v = (part.reshape(*part.shape[:2], -1, s.depth) for part in parts)
    if s.rotary and s.depth % 2 == 0:
        q, k = jax_rotated(q, s), jax_rotated(k, s)
    return q, k, v


class NnxAttention(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        keys = s.keys * s.depth
        if s.fused[1]:
            self.qkv_proj = nnx.Linear(s.width, s.width + 2 * keys, use_bias=s.bias, rngs=rngs)
        else:
            self.q_proj = nnx.Linear(s.width, s.width, use_bias=s.bias, rngs=rngs)
            self.k_proj = nnx.Linear(s.width, keys, use_bias=s.bias, rngs=rngs)
            self.v_proj = nnx.Linear(s.width, keys, use_bias=s.bias, rngs=rngs)
        self.o_proj, self.s = nnx.Linear(s.width, s.width, use_bias=s.bias, rngs=rngs), s
        self.drop = nnx.Dropout(s.rate, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        s, rows = self.s, jax_rows(x)
        if s.fused[1]:
            parts: Any = jnp.split(self.qkv_proj(rows), [s.width, s.width + s.keys * s.depth], -1)
        else:
            parts = self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)
        q, k, v = jax_heads(parts, s)
        y = jax_attended(q, k, v, s, self.drop)
        return self.o_proj(y.reshape(*rows.shape)).reshape(x.shape)


class LinenAttention(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s, rows, keys = self.s, jax_rows(x), self.s.keys * self.s.depth
        if s.fused[1]:
            joint = linen.Dense(s.width + 2 * keys, use_bias=s.bias, name="qkv_proj")(rows)
            parts = jnp.split(joint, [s.width, s.width + keys], -1)
        else:
            sizes = {"q_proj": s.width, "k_proj": keys, "v_proj": keys}
            parts = [linen.Dense(size, use_bias=s.bias, name=name)(rows) for name, size in sizes.items()]
        drop = linen.Dropout(s.rate, deterministic=not train)
        q, k, v = jax_heads(parts, s)
        y = jax_attended(q, k, v, s, drop).reshape(rows.shape)
        return linen.Dense(s.width, use_bias=s.bias, name="o_proj")(y).reshape(x.shape)


# --- attention without a softmax


class TorchLinearAttention(nn.Module):
    """Keys and values are summed over the positions first (Katharopoulos et al. 2020)."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(s.width, s.width, bias=s.bias), nn.Linear(s.width, s.width, bias=s.bias)
        self.value, self.out = nn.Linear(s.width, s.width, bias=s.bias), nn.Linear(s.width, s.width)
        self.s = s

    def forward(self, x: Any) -> Any:
        heads = (self.s.heads, self.s.depth)
        q, k, v = (layer(x).unflatten(-1, heads) for layer in (self.query, self.key, self.value))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = torch.einsum("blhd,blhe->bhde", k, v)
        scale = 1 / (torch.einsum("blhd,bhd->blh", q, k.sum(1)) + 1e-6)
        return self.out(torch.einsum("blhd,bhde,blh->blhe", q, sums, scale).flatten(2))


class NnxLinearAttention(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.query = nnx.LinearGeneral(s.width, (s.heads, s.depth), use_bias=s.bias, rngs=rngs)
        self.key = nnx.LinearGeneral(s.width, (s.heads, s.depth), use_bias=s.bias, rngs=rngs)
        self.value = nnx.LinearGeneral(s.width, (s.heads, s.depth), use_bias=s.bias, rngs=rngs)
        self.out = nnx.LinearGeneral((s.heads, s.depth), s.width, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(jax_linear_attention(self.query(x), self.key(x), self.value(x)))


class LinenLinearAttention(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        heads = (self.s.heads, self.s.depth)
        parts = [linen.DenseGeneral(heads, use_bias=self.s.bias, name=name)(x) for name in ("query", "key", "value")]
        return linen.DenseGeneral(self.s.width, axis=(-2, -1), name="out")(jax_linear_attention(*parts))


def jax_linear_attention(q: Any, k: Any, v: Any) -> Any:
    q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    sums = jnp.einsum("blhd,blhe->bhde", k, v)
    return jnp.einsum("blhd,bhde->blhe", q, sums) / (jnp.einsum("blhd,bhd->blh", q, k.sum(1)) + 1e-6)[..., None]


ATTENTION: dict[str, Block] = {
    "attention of the library": Block(TorchLibrary, NnxLibrary, in_linen(LinenLibrary), PLACES),
    "attention": Block(TorchAttention, NnxAttention, in_linen(LinenAttention), PLACES),
    "linear attention": Block(TorchLinearAttention, NnxLinearAttention, in_linen(LinenLinearAttention), SEQUENCE),
}
