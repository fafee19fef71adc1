"""Transformers in Flax Linen. Read beside pytorch.py and nnx.py: the same classes in the same order."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ports.layers.initializers import torch_attention, torch_embedding, torch_kernel
from ports.layers.linen import AnyArray, Dtype, linear, param_dtype
from ports.transformer.spec import EncoderSpec

Features = Float[Array, "batch length width"]


def layer_norm(*, dtype: Dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, param_dtype=param_dtype(dtype))


def embedding(count: int, width: int, *, dtype: Dtype) -> nn.Embed:
    return nn.Embed(count, width, embedding_init=torch_embedding, dtype=dtype, param_dtype=param_dtype(dtype))


class EncoderBlock(nn.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    spec: EncoderSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.norm1 = layer_norm(dtype=dtype)
        self.attention = nn.MultiHeadDotProductAttention(
            spec.heads,
            kernel_init=torch_attention,
            out_kernel_init=torch_kernel,
            dtype=dtype,
            param_dtype=param_dtype(dtype),
        )
        self.norm2 = layer_norm(dtype=dtype)
        self.linear1 = linear(spec.width, spec.hidden, dtype=dtype)
        self.linear2 = linear(spec.hidden, spec.width, dtype=dtype)

    def __call__(self, x: Features) -> Features:
        y = self.norm1(x)
        x = x + self.attention(y)
        y = self.norm2(x)
        return x + self.linear2(nn.gelu(self.linear1(y), approximate=False))


class Encoder(nn.Module):
    """Tokens (batch, length) to logits (batch, classes)."""

    spec: EncoderSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.tokens = embedding(spec.vocabulary, spec.width, dtype=dtype)
        self.positions = embedding(spec.length, spec.width, dtype=dtype)
        self.blocks = [EncoderBlock(spec, dtype) for _ in range(spec.depth)]
        self.norm = layer_norm(dtype=dtype)
        self.head = linear(spec.width, spec.num_classes, dtype=dtype)

    def __call__(self, tokens: Int[AnyArray, "batch length"], train: bool = False) -> Float[Array, "batch classes"]:
        x = self.tokens(jnp.asarray(tokens)) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(axis=1))
