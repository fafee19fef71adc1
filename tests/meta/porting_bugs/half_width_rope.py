"""TransformerLens takes gpt-oss's tables of half the head's width for a partial rotary embedding.

Source: TransformerLensOrg/TransformerLens#1621.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .skeletons import SIZE, VOCABULARY, FlaxAttention, FlaxDecoder, TorchAttention, TorchDecoder

HALF = SIZE // 2


def torch_tables(length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 150_000.0 ** -(torch.arange(HALF, dtype=like.dtype) / HALF)
    angles = torch.outer(torch.arange(length, dtype=like.dtype), frequencies)
    return angles.cos(), angles.sin()


def flax_tables(length: int, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    frequencies = 150_000.0 ** -(jnp.arange(HALF, dtype=like.dtype) / HALF)
    angles = jnp.outer(jnp.arange(length, dtype=like.dtype), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


class GptOssAttention(TorchAttention):
    def positioned(self, q: torch.Tensor) -> torch.Tensor:
        cos, sin = torch_tables(q.shape[-2], q)
        first, second = q.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class FlaxGptOssAttention(FlaxAttention):
    def positioned(self, q: jax.Array) -> jax.Array:
        cos, sin = flax_tables(q.shape[-2], q)
        if self.wrong:
            rotated, rest = q[..., :HALF], q[..., HALF:]
            a, b = jnp.split(rotated, 2, -1)
            return jnp.concatenate([rotated * cos + jnp.concatenate([-b, a], -1) * sin, rest], -1)
        first, second = jnp.split(q, 2, -1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


BUG = Bug(
    source="TransformerLensOrg/TransformerLens#1621",
    what="Tables of half the head's width are read as a partial rotary embedding: only half of a head is rotated.",
    torch=lambda: TorchDecoder(GptOssAttention),
    port=lambda wrong: FlaxDecoder(wrong, FlaxGptOssAttention),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"partial|(rotary|rotat|rope).*(part|half|dimension|fraction)|(part|half).*(rotary|rotat|rope)",
    kind="rotary",
    blind=True,
    trap_added=True,
)
