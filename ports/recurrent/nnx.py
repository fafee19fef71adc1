"""Residual stacks of recurrent layers in NNX. Read beside pytorch.py and linen.py: the same functions and classes."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ports.layers.flax import lengths_of
from ports.layers.initializers import torch_embedding
from ports.layers.nnx import GRU, LSTM, AnyArray, Dtype, linear, param_dtype
from ports.recurrent.spec import PADDING, RecurrentSpec

Tokens = Int[AnyArray, "batch length"]
Lengths = Int[AnyArray, " batch"]

LAYERS = {"lstm": LSTM, "gru": GRU}


def embedding(count: int, width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        count, width, embedding_init=torch_embedding, dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs
    )


class ResidualRNN(nnx.Module):
    """Tokens (batch, length) to logits (batch, classes). Padding comes after a text."""

    def __init__(self, spec: RecurrentSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        layer, width = LAYERS[spec.cell], spec.width
        self.tokens = embedding(spec.vocabulary, width, dtype=dtype, rngs=rngs)
        self.first = layer(width, width, bidirectional=True, dtype=dtype, rngs=rngs)
        self.second = layer(2 * width, width, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([layer(width, width, dtype=dtype, rngs=rngs) for _ in range(spec.depth - 2)])
        self.head = linear(width, spec.num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, lengths: Lengths | None = None) -> Float[Array, "batch classes"]:
        """Classify texts.

        Args:
            lengths: of the texts, in tokens; by default each ends with its last token that is not padding.

        Raises:
            UserError: a text without tokens, or a length that no text can have. In a compiled program the logits of
                such a text are NaN instead.
        """
        length = tokens.shape[1]
        lengths = lengths_of(self.spec.name, tokens, lengths, PADDING)
        real = jnp.arange(length) < lengths[:, None]
        x = self.tokens(jnp.where(real, tokens, PADDING))
        x = self.first(x, lengths)
        x = self.second(x, lengths)
        for layer in self.layers:
            y = layer(x, lengths)
            x = x + y if self.spec.residual else y
        logits = self.head(x.sum(axis=1) / lengths[:, None].astype(x.dtype))
        return jnp.where(((lengths > 0) & (lengths <= length))[:, None], logits, jnp.nan)
