"""Transformers in Flax NNX. Read beside pytorch.py and linen.py: the same classes in the same order."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ports.layers.initializers import torch_attention, torch_embedding, torch_kernel
from ports.layers.nnx import AnyArray, Dtype, linear, param_dtype
from ports.transformer.spec import EncoderSpec

Features = Float[Array, "batch length width"]


def layer_norm(width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs)


def embedding(count: int, width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        count, width, embedding_init=torch_embedding, dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs
    )


class EncoderBlock(nnx.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: EncoderSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.norm1 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            spec.heads,
            spec.width,
            kernel_init=torch_attention,
            out_kernel_init=torch_kernel,
            decode=False,
            dtype=dtype,
            param_dtype=param_dtype(dtype),
            rngs=rngs,
        )
        self.norm2 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.linear1 = linear(spec.width, spec.hidden, dtype=dtype, rngs=rngs)
        self.linear2 = linear(spec.hidden, spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        y = self.norm1(x)
        x = x + self.attention(y)
        y = self.norm2(x)
        return x + self.linear2(nnx.gelu(self.linear1(y), approximate=False))


class Encoder(nnx.Module):
    """Tokens (batch, length) to logits (batch, classes)."""

    def __init__(self, spec: EncoderSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.tokens = embedding(spec.vocabulary, spec.width, dtype=dtype, rngs=rngs)
        self.positions = embedding(spec.length, spec.width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Sequential(*(EncoderBlock(spec, dtype=dtype, rngs=rngs) for _ in range(spec.depth)))
        self.norm = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.head = linear(spec.width, spec.num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Int[AnyArray, "batch length"]) -> Float[Array, "batch classes"]:
        x = self.tokens(jnp.asarray(tokens)) + self.positions(jnp.arange(tokens.shape[1]))
        x = self.norm(self.blocks(x))
        return self.head(x.mean(axis=1))
