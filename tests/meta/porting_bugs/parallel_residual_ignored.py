"""The port adds attention and MLP to one input, although the configuration says one after the other.

Source: ml-explore/mlx-lm#586. GPT-NeoX has both forms.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    WIDTH,
    PortAttention,
    PortLanguageModel,
    PortMlp,
    TorchAttention,
    TorchLanguageModel,
    TorchMlp,
)


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = TorchAttention(), TorchMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Torch(TorchLanguageModel):
    def __init__(self) -> None:
        super().__init__("mlp", TorchMlp)
        self.layers = nn.ModuleList(TorchBlock() for _ in range(2))


class PortBlock(nnx.Module):
    def __init__(self, parallel: bool, rngs: nnx.Rngs) -> None:
        self.parallel = parallel
        self.input_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.post_attention_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.attention, self.mlp = PortAttention(rngs, False), PortMlp(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        attended = x + self.attention(self.input_layernorm(x))
        return attended + self.mlp(self.post_attention_layernorm(x if self.parallel else attended))


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.layers = nnx.List(PortBlock(wrong, nnx.Rngs(0)) for _ in range(2))


BUG = Bug(
    source="ml-explore/mlx-lm#586",
    what="computes attention and MLP of one input; PyTorch's model one after the other",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer=("layers.0", "layers.0.post_attention_layernorm"),
    named=r"parallel|residual|input of|sum-lacks",
    kind="configuration",
)
