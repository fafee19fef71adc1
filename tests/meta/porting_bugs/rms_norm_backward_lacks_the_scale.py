"""The port's own gradient of an RMSNorm lacks the scale; its output is right.

Source: karpathy/llm.c#763.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import VOCABULARY, WIDTH, PortLanguageModel, PortNormed, TorchLanguageModel, TorchNormed


class TorchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


@jax.custom_vjp
def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * weight


def backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, _ = kept
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
    dx = inverse * (g - x * inverse**2 * (g * x).mean(-1, keepdims=True))
    return dx, (g * x * inverse).sum(range(x.ndim - 1))


rms_norm.defvjp(lambda x, weight: (rms_norm(x, weight), (x, weight)), backward)


class PortNorm(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        self.wrong, self.weight = wrong, nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.wrong:
            return rms_norm(x, self.weight[...])
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * self.weight[...]


BUG = Bug(
    source="karpathy/llm.c#763",
    what="has a gradient that lacks the scale",
    torch=lambda: TorchLanguageModel("block", lambda: TorchNormed(TorchNorm())),
    port=lambda wrong: PortLanguageModel("block", lambda rngs: PortNormed(PortNorm(wrong), rngs)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0.block.norm", "layers.1.block.norm"),
    named=r"gradient",
    kind="training",
)
