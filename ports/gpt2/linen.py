"""GPT-2 in Flax Linen. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows transformers' modeling_gpt2.py in names and initial distributions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from ports.decoding.flax import Cache, Past, attend
from ports.decoding.linen import blocks, run
from ports.gpt2.spec import GPT2Spec
from ports.layers.checks import require_length
from ports.layers.linen import AnyArray, Conv1D, Dtype, conv1d, param_dtype

Tokens = Int[AnyArray, "batch length"]
Features = Float[Array, "batch length width"]
Logits = Float[Array, "batch length vocabulary"]


def embedding(count: int, width: int, *, dtype: Dtype) -> nn.Embed:
    return nn.Embed(count, width, embedding_init=normal(0.02), dtype=dtype, param_dtype=param_dtype(dtype))


def layer_norm(*, dtype: Dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, param_dtype=param_dtype(dtype))


def to_residual(spec: GPT2Spec, *, dtype: Dtype) -> Conv1D:
    """The last layer of a branch: smaller, for 2 · depth of them are summed."""
    return conv1d(spec.width, deviation=0.02 / (2 * spec.depth) ** 0.5, dtype=dtype)


class GPT2Attention(nn.Module):
    """Each token looks at itself and at those before it."""

    spec: GPT2Spec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.c_attn = conv1d(3 * spec.width, dtype=dtype)
        self.c_proj = to_residual(spec, dtype=dtype)

    def __call__(self, x: Features, past: Past | None = None) -> Features:
        heads = self.spec.heads
        q, k, v = jnp.split(self.c_attn(x), 3, axis=2)
        q, k, v = (part.reshape(*x.shape[:2], heads, -1) for part in (q, k, v))
        y = attend(q, k, v, None) if past is None else past.attend(q, k, v)
        return self.c_proj(y)


class GPT2MLP(nn.Module):
    """Two linear layers with a GELU, computed from tanh."""

    spec: GPT2Spec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.c_fc = conv1d(spec.hidden, dtype=dtype)
        self.c_proj = to_residual(spec, dtype=dtype)

    def __call__(self, x: Features) -> Features:
        return self.c_proj(nn.gelu(self.c_fc(x), approximate=True))


class GPT2Block(nn.Module):
    """Attention, then the linear layers; before each a LayerNorm, around each a shortcut."""

    spec: GPT2Spec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.ln_1 = layer_norm(dtype=dtype)
        self.attn = GPT2Attention(spec, dtype)
        self.ln_2 = layer_norm(dtype=dtype)
        self.mlp = GPT2MLP(spec, dtype)

    def __call__(self, x: Features, past: Past | None = None) -> Features:
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    """Tokens and their positions to features."""

    spec: GPT2Spec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.wte = embedding(spec.vocabulary, spec.width, dtype=dtype)
        self.wpe = embedding(spec.length, spec.width, dtype=dtype)
        self.h = blocks(lambda: GPT2Block(spec, dtype), spec.depth, spec.stacked)
        self.ln_f = layer_norm(dtype=dtype)

    def __call__(self, tokens: Tokens, positions: Int[Array, "_ length"], pasts: list[Past] | None = None) -> Features:
        x = self.wte(jnp.asarray(tokens)) + self.wpe(positions)
        return self.ln_f(run(self.h, self.spec.depth, x, pasts))


class GPT2LMHeadModel(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary) of the tokens that follow."""

    spec: GPT2Spec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.transformer = GPT2Model(self.spec, self.dtype)
        self.lm_head = self.transformer.wte

    def __call__(self, tokens: Tokens, train: bool = False) -> Logits:
        require_length(self.spec.name, tokens.shape[1], self.spec.length)
        positions = jnp.arange(tokens.shape[1])[None]
        return self.lm_head.attend(self.transformer(tokens, positions))

    def prefill(
        self, tokens: Tokens, room: int, real: Bool[AnyArray, "batch length"] | None = None
    ) -> tuple[Logits, Cache]:
        """Read the beginnings of texts; `decode` goes on with the cache.

        Args:
            room: how many tokens the cache can hold, padding too.
            real: which tokens are not padding; by default all. Padding comes first.

        Raises:
            UserError: no token, or no room for so many.
        """
        spec = self.spec
        require_length(spec.name, tokens.shape[1], spec.length)
        require_length(spec.name, room, spec.length)
        shape = (tokens.shape[0], room, spec.heads, spec.width // spec.heads)
        return self._extended(tokens, Cache.empty(spec.depth, shape, self.dtype, spec.stacked), real)

    def decode(self, tokens: Tokens, cache: Cache) -> tuple[Logits, Cache]:
        """Read the next tokens of the texts, one or more of each.

        Raises:
            UserError: no token, or no room for so many. In a compiled program the logits are NaN instead.
        """
        require_length(self.spec.name, tokens.shape[1], self.spec.length)
        return self._extended(tokens, cache, None)

    def _extended(self, tokens: Tokens, cache: Cache, real: AnyArray | None) -> tuple[Logits, Cache]:
        real = jnp.ones(tokens.shape, bool) if real is None else jnp.asarray(real, bool)
        cache, pasts, positions = cache.extended(self.spec.name, real)
        return cache.behind(pasts, self.lm_head.attend(self.transformer(tokens, positions, pasts)))
