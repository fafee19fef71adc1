"""Vision Transformers in Flax NNX, NHWC. Read beside pytorch.py and linen.py: the same classes in the same order.

Follows torchvision's vision_transformer.py in names and initial distributions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.initializers import normal, xavier_uniform, zeros_init
from jaxtyping import Array, Float

from ports.layers.checks import require_size
from ports.layers.initializers import torch_attention, torch_kernel
from ports.layers.nnx import AnyArray, Dtype, param_dtype
from ports.vit.spec import ViTSpec

Image = Float[AnyArray, "batch height width channels"]
Features = Float[Array, "batch length width"]


def layer_norm(width: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, param_dtype=param_dtype(dtype), rngs=rngs)


def linear(in_features: int, out_features: int, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=xavier_uniform(),
        bias_init=normal(1e-6),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


def patches(spec: ViTSpec, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Conv:
    patch = spec.patch_size
    return nnx.Conv(
        spec.in_channels,
        spec.width,
        (patch, patch),
        strides=(patch, patch),
        padding="VALID",
        kernel_init=normal((1 / (spec.in_channels * patch * patch)) ** 0.5),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


def head(spec: ViTSpec, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        spec.width,
        spec.num_classes,
        kernel_init=zeros_init(),
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        rngs=rngs,
    )


def gelu(x: Features) -> Features:
    return nnx.gelu(x, approximate=False)


def identity(x: Features) -> Features:
    return x


class EncoderBlock(nnx.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: ViTSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.ln_1 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.self_attention = nnx.MultiHeadAttention(
            spec.heads,
            spec.width,
            kernel_init=torch_attention,
            out_kernel_init=torch_kernel,
            decode=False,
            dtype=dtype,
            param_dtype=param_dtype(dtype),
            rngs=rngs,
        )
        self.ln_2 = layer_norm(spec.width, dtype=dtype, rngs=rngs)
        self.mlp = nnx.Sequential(
            linear(spec.width, spec.hidden, dtype=dtype, rngs=rngs),
            gelu,
            identity,  # torchvision's dropout, whose rate is 0: the second linear layer is its number 3
            linear(spec.hidden, spec.width, dtype=dtype, rngs=rngs),
        )

    def __call__(self, x: Features) -> Features:
        y = self.ln_1(x)
        x = x + self.self_attention(y)
        return x + self.mlp(self.ln_2(x))


class Encoder(nnx.Module):
    """Adds a learned position to every token; the blocks and a LayerNorm follow."""

    def __init__(self, spec: ViTSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        shape = (1, spec.length, spec.width)
        self.dtype = dtype
        self.names = tuple(f"encoder_layer_{i}" for i in range(spec.depth))
        self.pos_embedding = nnx.Param(normal(0.02)(rngs.params(), shape, param_dtype(dtype)))
        self.layers = nnx.Dict({name: EncoderBlock(spec, dtype=dtype, rngs=rngs) for name in self.names})
        self.ln = layer_norm(spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        x = x + self.pos_embedding[...].astype(x.dtype)
        for name in self.names:
            x = self.layers[name](x)
        return self.ln(x)


class VisionTransformer(nnx.Module):
    """Images (batch, height, width, channels) to logits (batch, classes)."""

    def __init__(self, spec: ViTSpec, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.conv_proj = patches(spec, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, spec.width), param_dtype(dtype)))
        self.encoder = Encoder(spec, dtype=dtype, rngs=rngs)
        self.heads = nnx.Dict(head=head(spec, dtype=dtype, rngs=rngs))

    def __call__(self, x: Image) -> Float[Array, "batch classes"]:
        require_size(self.spec.name, (x.shape[1], x.shape[2]), self.spec.input_size)
        x = self.conv_proj(jnp.asarray(x))
        x = x.reshape(x.shape[0], -1, x.shape[3])  # (batch, patches, width)
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([token, x], axis=1)
        x = self.encoder(x)
        return self.heads["head"](x[:, 0])
