"""The cache of a decoder in PyTorch. Read beside flax.py: the same classes in the same order.

The room of a cache is fixed when it is made, as compiled programs need it. Padding is marked, and may precede a shorter
text. PyTorch writes into the memory of the cache, so do not use the old cache after a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ports.layers.checks import require_room

Heads = Float[Tensor, "batch length heads width"]
New = Float[Tensor, "batch length kv_heads width"]
Keys = Float[Tensor, "batch room kv_heads width"]
Seen = Bool[Tensor, "batch 1 length room"]


def attend(q: Heads, k: Keys, v: Keys, seen: Seen | None) -> Float[Tensor, "batch length features"]:
    """Attention. Compute attention; several heads of the queries may share a head of the keys and values.

    Args:
        seen: which keys a query sees; None if each query sees the tokens up to its own.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


@dataclass
class Past:
    """The keys and values of one block, and where new ones go."""

    keys: Keys
    values: Keys
    length: int
    seen: Seen

    def attend(self, q: Heads, k: New, v: New) -> Float[Tensor, "batch length features"]:
        """Attention of new tokens to all tokens so far."""
        end = self.length + k.shape[1]
        self.keys[:, self.length : end] = k
        self.values[:, self.length : end] = v
        return attend(q, self.keys, self.values, self.seen)


@dataclass(frozen=True)
class Cache:
    """The keys and values that a decoder keeps for a batch of texts.

    Attributes:
        keys, values: of each block.
        real: which places hold a token. Padding and empty places do not.
        length: how many places are filled.
    """

    keys: tuple[Keys, ...]
    values: tuple[Keys, ...]
    real: Bool[Tensor, "batch room"]
    length: int

    @classmethod
    def empty(cls, depth: int, shape: tuple[int, int, int, int], like: Tensor) -> Cache:
        """Return a cache without tokens.

        Args:
            shape: batch, room, heads of the keys, features of a head.
            like: a tensor with the type and the device.
        """
        keys = tuple(like.new_zeros(shape) for _ in range(depth))
        values = tuple(like.new_zeros(shape) for _ in range(depth))
        return cls(keys, values, torch.zeros(shape[:2], dtype=torch.bool, device=like.device), 0)

    def extended(
        self, name: str, real: Bool[Tensor, "batch length"]
    ) -> tuple[Cache, list[Past], Int[Tensor, "batch length"]]:
        """Take in new tokens: return the new cache, the part of it for each block, and the position of each token.

        A token sees the real tokens before it, and itself. So padding sees only itself, and no softmax is empty.
        The first real token of a text has position 0, and so has the padding before it.

        Args:
            name: of the network, for errors.
            real: which of the new tokens are not padding.
        """
        room, new = self.real.shape[1], real.shape[1]
        require_room(name, self.length + new, room)
        filled = self.real.clone()
        filled[:, self.length : self.length + new] = real
        places = torch.arange(room, device=real.device)
        own = places[self.length : self.length + new, None]
        seen = (filled[:, None] & (places < own)) | (places == own)
        positions = (filled.cumsum(1) - 1).clamp(min=0)[:, self.length : self.length + new]
        pasts = [Past(k, v, self.length, seen[:, None]) for k, v in zip(self.keys, self.values, strict=True)]
        return Cache(self.keys, self.values, filled, self.length + new), pasts, positions
