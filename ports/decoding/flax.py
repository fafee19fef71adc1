"""The cache of a decoder in JAX, for NNX and Linen. Read beside pytorch.py: the same classes in the same order.

The room of a cache is fixed when it is made, as compiled programs need it. Padding is marked, and may precede a shorter
text. A call returns a new cache; under `jax.jit` with `donate_argnames` it takes the memory of the old one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ports.layers.checks import require_room

Heads = Float[Array, "batch length heads width"]
New = Float[Array, "batch length kv_heads width"]
Keys = Float[Array, "*blocks batch room kv_heads width"]
Seen = Bool[Array, "_ 1 length room"]


def attend(q: Heads, k: Keys, v: Keys, seen: Seen | None) -> Float[Array, "batch length features"]:
    """Attention. Compute attention; several heads of the queries may share a head of the keys and values.

    Args:
        seen: which keys a query sees; None if each query sees the tokens up to its own.
    """
    batch, length, _, width = q.shape
    if seen is None:
        seen = jnp.tril(jnp.ones((1, 1, length, length), bool))
    wide = jnp.promote_types(q.dtype, jnp.float32)  # the softmax of a narrow type is computed in float32
    q = q.reshape(batch, length, k.shape[2], -1, width)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=wide) * width**-0.5
    scores = jnp.where(seen[:, :, None], scores, jnp.finfo(wide).min)
    y = jnp.einsum("bhgqk,bkhd->bqhgd", jax.nn.softmax(scores).astype(v.dtype), v)
    return y.reshape(batch, length, -1)


@dataclass
class Past:
    """The keys and values of one block, or of stacked blocks, and where new ones go."""

    keys: Keys
    values: Keys
    length: Any
    seen: Seen

    def attend(self, q: Heads, k: New, v: New) -> Float[Array, "batch length features"]:
        """Attention of new tokens to all tokens so far."""
        self.keys = lax.dynamic_update_slice_in_dim(self.keys, k.astype(self.keys.dtype), self.length, axis=1)
        self.values = lax.dynamic_update_slice_in_dim(self.values, v.astype(self.values.dtype), self.length, axis=1)
        return attend(q, self.keys, self.values, self.seen)

    def of_block(self, keys: Keys, values: Keys) -> Past:
        """Return the part of the cache that one of the stacked blocks needs."""
        return replace(self, keys=keys, values=values)


class Cache(struct.PyTreeNode):
    """The keys and values that a decoder keeps for a batch of texts.

    Attributes:
        keys, values: of each block. Stacked blocks have one array of keys and one of values, whose first axis is the
            blocks.
        real: which places hold a token. Padding and empty places do not.
        length: how many places are filled.
    """

    keys: tuple[Keys, ...]
    values: tuple[Keys, ...]
    real: Bool[Array, "batch room"]
    length: Int[Array, ""]

    @classmethod
    def empty(cls, depth: int, shape: tuple[int, int, int, int], like: Any, stacked: bool = False) -> Cache:
        """Return a cache without tokens.

        Args:
            shape: batch, room, heads of the keys, features of a head.
            like: the type.
        """
        shapes = [(depth, *shape)] if stacked else [shape] * depth
        keys = tuple(jnp.zeros(each, like) for each in shapes)
        values = tuple(jnp.zeros(each, like) for each in shapes)
        return cls(keys, values, jnp.zeros(shape[:2], bool), jnp.zeros((), jnp.int32))

    def extended(
        self, name: str, real: Bool[Array, "batch length"]
    ) -> tuple[Cache, list[Past], Int[Array, "batch length"]]:
        """Take in new tokens: return the new cache, the part of it for each block, and the position of each token.

        A token sees the real tokens before it, and itself. So padding sees only itself, and no softmax is empty.
        The first real token of a text has position 0, and so has the padding before it.

        Args:
            name: of the network, for errors.
            real: which of the new tokens are not padding.
        """
        room, new = self.real.shape[1], real.shape[1]
        require_room(name, new if isinstance(self.length, Tracer) else int(self.length) + new, room)
        filled = lax.dynamic_update_slice_in_dim(self.real, real, self.length, axis=1)
        places = jnp.arange(room)
        own = self.length + jnp.arange(new)[:, None]
        seen = (filled[:, None] & (places < own)) | (places == own)
        positions = (filled.cumsum(1) - 1).clip(min=0)
        positions = lax.dynamic_slice_in_dim(positions, self.length, new, axis=1)
        pasts = [Past(k, v, self.length, seen[:, None]) for k, v in zip(self.keys, self.values, strict=True)]
        return self.replace(real=filled, length=self.length + new), pasts, positions

    def behind(self, pasts: list[Past], logits: Array) -> tuple[Array, Cache]:
        """Return the logits, and the cache with what the blocks wrote.

        If a compiled program gets more tokens than the cache has room for, the logits are NaN, because the length is
        known only when it runs.
        """
        logits = jnp.where(self.length > self.real.shape[1], jnp.nan, logits)
        keys, values = tuple(past.keys for past in pasts), tuple(past.values for past in pasts)
        return logits, self.replace(keys=keys, values=values)
