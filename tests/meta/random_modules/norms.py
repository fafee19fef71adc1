"""Norms: the libraries' own in their default forms, and those that models write themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

from .block import ANY, IMAGE, Block, in_linen
from .choices import Choices


def torch_axes(s: Choices) -> tuple[int, ...]:
    """Return the dimensions of parameters that act on channels in PyTorch: last, or in front of an image's."""
    return (s.width, 1, 1) if s.shape.kind == "image" else (s.width,)


class TorchLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels; of an image they are the second axis."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.ndim < 4:
            return super().forward(input)
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TorchRMSNorm(nn.Module):
    """RMSNorm as Llama has it; pinned, it computes in float32."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.weight, self.s = nn.Parameter(torch.ones(s.width)), s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = 1 if self.s.shape.kind == "image" else -1
        y = x.float() if self.s.pinned[0] else x
        y = y * torch.rsqrt(y.pow(2).mean(axis, keepdim=True) + self.s.epsilon)
        return self.weight.view(torch_axes(self.s)) * y.to(x.dtype)


class NnxRMSNorm(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.scale, self.s = nnx.Param(jnp.ones(s.width)), s

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax_rms(x, self.scale[...], self.s)


class LinenRMSNorm(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jax_rms(x, self.param("scale", linen.initializers.ones, (self.s.width,)), self.s)


def jax_rms(x: jax.Array, scale: jax.Array, s: Choices) -> jax.Array:
    y = x.astype(jnp.float32) if s.pinned[1] else x
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + s.epsilon)
    return y.astype(x.dtype) * scale


class TorchOwnLayerNorm(nn.Module):
    """LayerNorm from its mean and its variance."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.weight, self.bias, self.s = nn.Parameter(torch.ones(s.width)), nn.Parameter(torch.zeros(s.width)), s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = 1 if self.s.shape.kind == "image" else -1
        y = x.float() if self.s.pinned[0] else x
        centred = y - y.mean(axis, keepdim=True)
        y = centred / torch.sqrt((centred**2).mean(axis, keepdim=True) + self.s.epsilon)
        where = torch_axes(self.s)
        return y.to(x.dtype) * self.weight.view(where) + self.bias.view(where)


class NnxOwnLayerNorm(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.scale, self.bias, self.s = nnx.Param(jnp.ones(s.width)), nnx.Param(jnp.zeros(s.width)), s

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax_layer_norm(x, self.s) * self.scale[...] + self.bias[...]


class LinenOwnLayerNorm(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scale = self.param("scale", linen.initializers.ones, (self.s.width,))
        bias = self.param("bias", linen.initializers.zeros, (self.s.width,))
        return jax_layer_norm(x, self.s) * scale + bias


def jax_layer_norm(x: jax.Array, s: Choices) -> jax.Array:
    y = x.astype(jnp.float32) if s.pinned[1] else x
    mean, var = jnp.mean(y, -1, keepdims=True), jnp.var(y, -1, keepdims=True)
    return ((y - mean) * jax.lax.rsqrt(var + s.epsilon)).astype(x.dtype)


class TorchSequenceBatchNorm(nn.BatchNorm1d):
    """BatchNorm of (batch, length, features), which PyTorch takes with the features second."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class TorchSequenceGroupNorm(nn.GroupNorm):
    """GroupNorm of (batch, length, features)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def torch_batch_norm(s: Choices) -> nn.Module:
    made = {"image": nn.BatchNorm2d, "sequence": TorchSequenceBatchNorm, "vector": nn.BatchNorm1d}
    return made[s.shape.kind](s.width, eps=s.epsilon)


def torch_group_norm(s: Choices) -> nn.Module:
    made = TorchSequenceGroupNorm if s.shape.kind == "sequence" else nn.GroupNorm
    return made(2, s.width, eps=s.epsilon)


NORMS: dict[str, Block] = {
    "layer norm": Block(
        lambda s: TorchLayerNorm(s.width, eps=s.epsilon),
        lambda s, rngs: nnx.LayerNorm(s.width, epsilon=s.epsilon, rngs=rngs),
        lambda s, name, x, train: linen.LayerNorm(epsilon=s.epsilon, name=name)(x),
    ),
    "layer norm of its own": Block(TorchOwnLayerNorm, NnxOwnLayerNorm, in_linen(LinenOwnLayerNorm)),
    "RMSNorm of its own": Block(TorchRMSNorm, NnxRMSNorm, in_linen(LinenRMSNorm)),
    "RMSNorm": Block(
        lambda s: nn.RMSNorm(s.width, eps=s.epsilon),
        lambda s, rngs: nnx.RMSNorm(s.width, epsilon=s.epsilon, rngs=rngs),
        lambda s, name, x, train: linen.RMSNorm(epsilon=s.epsilon, name=name)(x),
        ANY - IMAGE,
    ),
    "batch norm": Block(
        torch_batch_norm,
        lambda s, rngs: nnx.BatchNorm(s.width, momentum=0.9, epsilon=s.epsilon, rngs=rngs),
        lambda s, name, x, train: linen.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=s.epsilon, name=name
        )(x),
    ),
    "group norm": Block(
        torch_group_norm,
        lambda s, rngs: nnx.GroupNorm(s.width, num_groups=2, epsilon=s.epsilon, rngs=rngs),
        lambda s, name, x, train: linen.GroupNorm(num_groups=2, epsilon=s.epsilon, name=name)(x),
    ),
    "instance norm": Block(
        lambda s: nn.InstanceNorm2d(s.width, eps=s.epsilon, affine=True),
        lambda s, rngs: nnx.InstanceNorm(s.width, epsilon=s.epsilon, rngs=rngs),
        lambda s, name, x, train: linen.InstanceNorm(epsilon=s.epsilon, name=name)(x),
        IMAGE,
    ),
}
