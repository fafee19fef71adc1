"""GPT-2 in Flax NNX. Read beside pytorch.py and linen.py: the same classes in the same order.

Follows transformers' modeling_gpt2.py in names and initial distributions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from ports.decoding.flax import Cache, Past, attend
from ports.decoding.nnx import blocks, run
from ports.gpt2.spec import GPT2Spec
from ports.layers.checks import require_length
from ports.layers.nnx import AnyArray, Conv1D, Dtype, param_dtype

Tokens = Int[AnyArray, "batch length"]
Features = Float[Array, "batch length width"]
Logits = Float[Array, "batch length vocabulary"]


def embedding(count: int, width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(count, width, embedding_init=normal(0.02), dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs)


def layer_norm(width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs)


def to_residual(in_features: int, spec: GPT2Spec, *, dtype: Dtype, rngs: nnx.Rngs) -> Conv1D:
    """The last layer of a branch: smaller, for 2 · depth of them are summed."""
    return Conv1D(in_features, spec.width, deviation=0.02 / (2 * spec.depth) ** 0.5, dtype=dtype, rngs=rngs)


class GPT2Attention(nnx.Module):
    """Each token looks at itself and at those before it."""

    def __init__(self, spec: GPT2Spec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.heads = spec.heads
        self.c_attn = Conv1D(spec.width, 3 * spec.width, dtype=dtype, rngs=rngs)
        self.c_proj = to_residual(spec.width, spec, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features, past: Past | None = None) -> Features:
        q, k, v = jnp.split(self.c_attn(x), 3, axis=2)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in (q, k, v))
        y = attend(q, k, v, None) if past is None else past.attend(q, k, v)
        return self.c_proj(y)


class GPT2MLP(nnx.Module):
    """Two linear layers with a GELU, computed from tanh."""

    def __init__(self, spec: GPT2Spec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.c_fc = Conv1D(spec.width, spec.hidden, dtype=dtype, rngs=rngs)
        self.c_proj = to_residual(spec.hidden, spec, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        return self.c_proj(nnx.gelu(self.c_fc(x), approximate=True))


class GPT2Block(nnx.Module):
    """Attention, then the linear layers; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: GPT2Spec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.ln_1 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.attn = GPT2Attention(spec, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.mlp = GPT2MLP(spec, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features, past: Past | None = None) -> Features:
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nnx.Module):
    """Tokens and their positions to features."""

    def __init__(self, spec: GPT2Spec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.wte = embedding(spec.vocabulary, spec.width, dtype=dtype, rngs=rngs)
        self.wpe = embedding(spec.length, spec.width, dtype=dtype, rngs=rngs)
        self.h = blocks(lambda rngs: GPT2Block(spec, dtype=dtype, rngs=rngs), spec.depth, spec.stacked, rngs)
        self.ln_f = layer_norm(spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, positions: Int[Array, "_ length"], pasts: list[Past] | None = None) -> Features:
        x = self.wte(jnp.asarray(tokens)) + self.wpe(positions)
        return self.ln_f(run(self.h, x, pasts))


class GPT2LMHeadModel(nnx.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary) of the tokens that follow."""

    def __init__(self, spec: GPT2Spec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.transformer = GPT2Model(spec, dtype=dtype, rngs=rngs)
        self.lm_head = self.transformer.wte

    def __call__(self, tokens: Tokens) -> Logits:
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
        return self._extended(tokens, Cache.empty(spec.depth, shape, self.lm_head.dtype, spec.stacked), real)

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
