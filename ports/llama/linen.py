"""Decoders of Llama's kind in Flax Linen. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows transformers' modeling_llama.py and modeling_qwen2.py in names and initial distributions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from ports.decoding.flax import Cache, Past, attend
from ports.decoding.linen import blocks, run
from ports.layers.checks import require_length
from ports.layers.linen import AnyArray, Dtype, param_dtype
from ports.llama.spec import LlamaSpec

Tokens = Int[AnyArray, "batch length"]
Features = Float[Array, "batch length width"]
Heads = Float[Array, "batch length heads width"]
Logits = Float[Array, "batch length vocabulary"]
Rotation = tuple[Float[Array, "_ length 1 half"], Float[Array, "_ length 1 half"]]


def rotation(positions: Int[Array, "_ length"], frequencies: tuple[float, ...], dtype: Dtype) -> Rotation:
    """Return cosine and sine of the angles by which each position turns the pairs of features of a head.

    The angles are float32 at least: bfloat16 has no room for the position 257.
    """
    wide = param_dtype(dtype)
    angles = positions[..., None].astype(wide) * jnp.array(frequencies, wide)
    return jnp.cos(angles)[:, :, None].astype(dtype), jnp.sin(angles)[:, :, None].astype(dtype)


def rotated(x: Heads, turn: Rotation) -> Heads:
    """Turn pairs of features: a pair is a feature of the first half and its like of the second."""
    cos, sin = turn
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def linear(out_features: int, bias: bool = False, *, dtype: Dtype) -> nn.Dense:
    return nn.Dense(out_features, use_bias=bias, kernel_init=normal(0.02), dtype=dtype, param_dtype=param_dtype(dtype))


def embedding(spec: LlamaSpec, *, dtype: Dtype) -> nn.Embed:
    params = param_dtype(dtype)
    return nn.Embed(spec.vocabulary, spec.width, embedding_init=normal(0.02), dtype=dtype, param_dtype=params)


def rms_norm(spec: LlamaSpec, *, dtype: Dtype) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=spec.epsilon, dtype=dtype, param_dtype=param_dtype(dtype))


class LlamaAttention(nn.Module):
    """Each token looks at itself and at those before it; groups of queries share keys and values."""

    spec: LlamaSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.q_proj = linear(spec.heads * spec.head_width, spec.bias, dtype=dtype)
        self.k_proj = linear(spec.kv_heads * spec.head_width, spec.bias, dtype=dtype)
        self.v_proj = linear(spec.kv_heads * spec.head_width, spec.bias, dtype=dtype)
        self.o_proj = linear(spec.width, dtype=dtype)

    def __call__(self, x: Features, turn: Rotation, past: Past | None = None) -> Features:
        head_width = self.spec.head_width
        q = rotated(self.q_proj(x).reshape(*x.shape[:2], -1, head_width), turn)
        k = rotated(self.k_proj(x).reshape(*x.shape[:2], -1, head_width), turn)
        v = self.v_proj(x).reshape(*x.shape[:2], -1, head_width)
        y = attend(q, k, v, None) if past is None else past.attend(q, k, v)
        return self.o_proj(y)


class LlamaMLP(nn.Module):
    """A linear layer, each feature of it multiplied by a gate, and a linear layer back."""

    spec: LlamaSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.gate_proj = linear(spec.hidden, dtype=dtype)
        self.up_proj = linear(spec.hidden, dtype=dtype)
        self.down_proj = linear(spec.width, dtype=dtype)

    def __call__(self, x: Features) -> Features:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    """Attention, then the gated MLP; before each an RMSNorm, around each a shortcut."""

    spec: LlamaSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.self_attn = LlamaAttention(spec, dtype)
        self.mlp = LlamaMLP(spec, dtype)
        self.input_layernorm = rms_norm(spec, dtype=dtype)
        self.post_attention_layernorm = rms_norm(spec, dtype=dtype)

    def __call__(self, x: Features, turn: Rotation, past: Past | None = None) -> Features:
        x = x + self.self_attn(self.input_layernorm(x), turn, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Tokens and their positions to features."""

    spec: LlamaSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.frequencies = spec.frequencies()
        self.embed_tokens = embedding(spec, dtype=dtype)
        self.layers = blocks(lambda: LlamaDecoderLayer(spec, dtype), spec.depth, spec.stacked)
        self.norm = rms_norm(spec, dtype=dtype)

    def __call__(self, tokens: Tokens, positions: Int[Array, "_ length"], pasts: list[Past] | None = None) -> Features:
        x = self.embed_tokens(jnp.asarray(tokens))
        turn = rotation(positions, self.frequencies, x.dtype)
        return self.norm(run(self.layers, self.spec.depth, x, pasts, turn))


class LlamaForCausalLM(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary) of the tokens that follow."""

    spec: LlamaSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.model = LlamaModel(spec, dtype)
        if spec.tied:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = linear(spec.vocabulary, dtype=dtype)

    def __call__(self, tokens: Tokens, train: bool = False) -> Logits:
        require_length(self.spec.name, tokens.shape[1])
        positions = jnp.arange(tokens.shape[1])[None]
        return self._logits(self.model(tokens, positions))

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
        require_length(spec.name, tokens.shape[1])
        shape = (tokens.shape[0], room, spec.kv_heads, spec.head_width)
        return self._extended(tokens, Cache.empty(spec.depth, shape, self.dtype, spec.stacked), real)

    def decode(self, tokens: Tokens, cache: Cache) -> tuple[Logits, Cache]:
        """Read the next tokens of the texts, one or more of each.

        Raises:
            UserError: no token, or no room for so many. In a compiled program the logits are NaN instead.
        """
        require_length(self.spec.name, tokens.shape[1])
        return self._extended(tokens, cache, None)

    def _logits(self, x: Features) -> Logits:
        return self.lm_head.attend(x) if isinstance(self.lm_head, nn.Embed) else self.lm_head(x)

    def _extended(self, tokens: Tokens, cache: Cache, real: AnyArray | None) -> tuple[Logits, Cache]:
        real = jnp.ones(tokens.shape, bool) if real is None else jnp.asarray(real, bool)
        cache, pasts, positions = cache.extended(self.spec.name, real)
        return cache.behind(pasts, self._logits(self.model(tokens, positions, pasts)))
