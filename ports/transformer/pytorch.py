"""Transformers in PyTorch. Read beside nnx.py and linen.py: the same classes in the same order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ports.transformer.spec import EncoderSpec

Features = Float[Tensor, "batch length width"]


class EncoderBlock(nn.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=1e-5)
        self.attention = nn.MultiheadAttention(spec.width, spec.heads, batch_first=True)
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-5)
        self.linear1 = nn.Linear(spec.width, spec.hidden)
        self.linear2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x: Features) -> Features:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norm2(x)
        return x + self.linear2(F.gelu(self.linear1(y)))


class Encoder(nn.Module):
    """Tokens (batch, length) to logits (batch, classes)."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(spec.vocabulary, spec.width)
        self.positions = nn.Embedding(spec.length, spec.width)
        self.blocks = nn.Sequential(*(EncoderBlock(spec) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, eps=1e-5)
        self.head = nn.Linear(spec.width, spec.num_classes)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.blocks(x))
        return self.head(x.mean(dim=1))
