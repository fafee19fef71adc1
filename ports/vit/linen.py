"""Vision Transformers in Flax Linen, NHWC. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows torchvision's vision_transformer.py in names and initial distributions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal, xavier_uniform, zeros_init
from jaxtyping import Array, Float

from ports.layers.checks import require_size
from ports.layers.initializers import torch_attention, torch_kernel
from ports.layers.linen import AnyArray, Dtype, param_dtype
from ports.vit.spec import ViTSpec

Image = Float[AnyArray, "batch height width channels"]
Features = Float[Array, "batch length width"]


def layer_norm(*, dtype: Dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, param_dtype=param_dtype(dtype))


def linear(out_features: int, *, dtype: Dtype) -> nn.Dense:
    return nn.Dense(
        out_features,
        kernel_init=xavier_uniform(),
        bias_init=normal(1e-6),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
    )


def patches(spec: ViTSpec, *, dtype: Dtype) -> nn.Conv:
    patch = spec.patch_size
    return nn.Conv(
        spec.width,
        (patch, patch),
        strides=(patch, patch),
        padding="VALID",
        kernel_init=normal((1 / (spec.in_channels * patch * patch)) ** 0.5),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
    )


def head(spec: ViTSpec, *, dtype: Dtype) -> nn.Dense:
    return nn.Dense(spec.num_classes, kernel_init=zeros_init(), dtype=dtype, param_dtype=param_dtype(dtype))


def gelu(x: Features) -> Features:
    return nn.gelu(x, approximate=False)


def identity(x: Features) -> Features:
    return x


class EncoderBlock(nn.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    spec: ViTSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.ln_1 = layer_norm(dtype=dtype)
        self.self_attention = nn.MultiHeadDotProductAttention(
            spec.heads,
            kernel_init=torch_attention,
            out_kernel_init=torch_kernel,
            dtype=dtype,
            param_dtype=param_dtype(dtype),
        )
        self.ln_2 = layer_norm(dtype=dtype)
        self.mlp = [
            linear(spec.hidden, dtype=dtype),
            gelu,
            identity,  # torchvision's dropout, whose rate is 0: the second linear layer is its number 3
            linear(spec.width, dtype=dtype),
        ]

    def __call__(self, x: Features) -> Features:
        y = self.ln_1(x)
        x = x + self.self_attention(y)
        y = self.ln_2(x)
        for layer in self.mlp:
            y = layer(y)
        return x + y


class Encoder(nn.Module):
    """Adds a learned position to every token; the blocks and a LayerNorm follow."""

    spec: ViTSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        shape = (1, spec.length, spec.width)
        self.names = tuple(f"encoder_layer_{i}" for i in range(spec.depth))
        self.pos_embedding = self.param("pos_embedding", normal(0.02), shape, param_dtype(dtype))
        self.layers = {name: EncoderBlock(spec, dtype) for name in self.names}
        self.ln = layer_norm(dtype=dtype)

    def __call__(self, x: Features) -> Features:
        x = x + self.pos_embedding.astype(x.dtype)
        for name in self.names:
            x = self.layers[name](x)
        return self.ln(x)


class VisionTransformer(nn.Module):
    """Images (batch, height, width, channels) to logits (batch, classes)."""

    spec: ViTSpec
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        spec, dtype = self.spec, self.dtype
        self.conv_proj = patches(spec, dtype=dtype)
        self.class_token = self.param("class_token", zeros_init(), (1, 1, spec.width), param_dtype(dtype))
        self.encoder = Encoder(spec, dtype)
        self.heads = {"head": head(spec, dtype=dtype)}

    def __call__(self, x: Image, train: bool = False) -> Float[Array, "batch classes"]:
        require_size(self.spec.name, (x.shape[1], x.shape[2]), self.spec.input_size)
        x = self.conv_proj(jnp.asarray(x))
        x = x.reshape(x.shape[0], -1, x.shape[3])  # (batch, patches, width)
        token = jnp.broadcast_to(self.class_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([token, x], axis=1)
        x = self.encoder(x)
        return self.heads["head"](x[:, 0])
