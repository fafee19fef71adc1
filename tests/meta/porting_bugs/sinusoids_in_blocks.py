"""The port's table has all sines in front of all cosines; PyTorch's model has them side by side.

Source: tensorops/TransformerX#115.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    WIDTH,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)


class Torch(TorchLanguageModel):
    def __init__(self) -> None:
        super().__init__("mlp", TorchMlp)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        frequencies = 1e4 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
        angles = torch.arange(ids.shape[1])[:, None] * frequencies
        x = self.embed_tokens(ids)
        return x + torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(x.dtype)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.wrong = wrong

    def embed(self, ids: jax.Array) -> jax.Array:
        angles = jnp.arange(ids.shape[1])[:, None] * 1e4 ** -(jnp.arange(0, WIDTH, 2) / WIDTH)
        waves = jnp.sin(angles), jnp.cos(angles)
        table = jnp.concatenate(waves, -1) if self.wrong else jnp.stack(waves, -1).reshape(-1, WIDTH)
        return self.embed_tokens(ids) + table.astype(self.embed_tokens.embedding.dtype)


BUG = Bug(
    source="tensorops/TransformerX#115",
    what="has the sines in front of the cosines; PyTorch's model has them side by side",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("(the network)",),
    named=r"waves-in-blocks|sines",
    kind="embedding",
)
