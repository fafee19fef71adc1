"""The port ignores Llama 3's scaling of low frequencies.

Source: Blaizzy/mlx-vlm#1710.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import torch

from . import Bug
from .inputs import tokens
from .surroundings import (
    DEPTH,
    VOCABULARY,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
    port_rotated,
    torch_rotated,
)


class Torch(TorchAttention):
    def angles(self, length: int) -> torch.Tensor:
        frequencies = 1e4 ** -(torch.arange(0, DEPTH, 2) / DEPTH)
        wavelengths = 2 * math.pi / frequencies
        smooth = ((64 / wavelengths - 1) / (4 - 1)).clamp(0, 1)
        return torch.arange(length)[:, None] * ((1 - smooth) * frequencies / 8 + smooth * frequencies)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        angles = self.angles(q.shape[2])
        return super().attend(torch_rotated(q, angles), torch_rotated(k, angles), v)


class Port(PortAttention):
    def angles(self, length: int) -> jax.Array:
        frequencies = 1e4 ** -(jnp.arange(0, DEPTH, 2) / DEPTH)
        if not self.wrong:
            smooth = jnp.clip((64 * frequencies / (2 * math.pi) - 1) / (4 - 1), 0, 1)
            frequencies = (1 - smooth) * frequencies / 8 + smooth * frequencies
        return jnp.arange(length)[:, None] * frequencies

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        angles = self.angles(q.shape[1])
        return super().attend(port_rotated(q, angles), port_rotated(k, angles), v)


BUG = Bug(
    source="Blaizzy/mlx-vlm#1710",
    what="does not scale the low frequencies; PyTorch's model scales them as Llama 3 does",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"rotary-frequencies-unscaled|low frequencies are not scaled|frequenc.*scal",
    kind="rotary",
    trap_added=True,
)
