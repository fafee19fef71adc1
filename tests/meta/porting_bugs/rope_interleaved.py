"""The port's rotary embedding rotates the two halves of a head; PyTorch's model rotates neighbours.

Source: EleutherAI/gpt-neox#834. Checkpoints for one form were run with the other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import DEPTH, HEADS, VOCABULARY, WIDTH, PortLanguageModel, TorchLanguageModel


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        frequencies = 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)
        angles = (torch.arange(x.shape[2])[:, None] * frequencies).to(x.dtype)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1).flatten(-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, DEPTH)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = nn.functional.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class Port(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.q_proj, self.k_proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.v_proj, self.o_proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def rotate(self, x: jax.Array) -> jax.Array:
        frequencies = 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        angles = (jnp.arange(x.shape[1])[:, None, None] * frequencies).astype(x.dtype)
        a, b = jnp.split(x, 2, -1) if self.wrong else (x[..., ::2], x[..., 1::2])
        turned = a * jnp.cos(angles) - b * jnp.sin(angles), a * jnp.sin(angles) + b * jnp.cos(angles)
        return jnp.concatenate(turned, -1) if self.wrong else jnp.stack(turned, -1).reshape(x.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (p(x).reshape(*x.shape[:2], HEADS, DEPTH) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = jax.nn.dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.o_proj(y.reshape(x.shape))


BUG = Bug(
    source="EleutherAI/gpt-neox#834",
    what="rotates features half the depth apart; PyTorch's model rotates neighbours",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(wrong, rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-is-half-split|half of the depth apart",
    kind="rotary",
)
