"""The port computes the codebook loss of the straight-through value, so that the codebook gets no gradient.

Source: andylolu2/jax-vqvae-gpt#2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(8, 6)
        self.codebook = nn.Embedding(5, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.encoder(x)
        distances = (z[:, None] - self.codebook.weight).square().sum(-1)
        quantized = self.codebook(distances.argmin(-1))
        loss = (quantized.detach() - z).square().mean() + (quantized - z.detach()).square().mean()
        return self.decoder(z + (quantized - z).detach()), loss


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.encoder, self.decoder = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)
        self.codebook = nnx.Embed(5, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, stop = self.encoder(x), jax.lax.stop_gradient
        distances = jnp.square(z[:, None] - self.codebook.embedding[...]).sum(-1)
        quantized = self.codebook(distances.argmin(-1))
        straight = z + stop(quantized - z)
        code = straight if self.wrong else quantized
        loss = jnp.square(stop(code) - z).mean() + jnp.square(code - stop(z)).mean()
        return self.decoder(straight), loss


BUG = Bug(
    source="andylolu2/jax-vqvae-gpt#2",
    what="gives the encoder the codebook's gradient",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(7, 6),),
    layer=("(the network)", "codebook"),
    named=r"stop-gradient|stop_gradient|detach|straight-through",
    kind="training",
)
