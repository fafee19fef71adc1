"""GPT-2 in PyTorch. Read beside nnx.py and linen.py: the same classes in the same order.

Follows transformers' modeling_gpt2.py in names, order and initial distributions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ports.decoding.pytorch import Cache, Past, attend
from ports.gpt2.spec import GPT2Spec
from ports.layers.checks import require_length
from ports.layers.pytorch import Conv1D

Tokens = Int[Tensor, "batch length"]
Features = Float[Tensor, "batch length width"]
Logits = Float[Tensor, "batch length vocabulary"]

torch.fx.wrap("require_length")  # a traced network has the check as one call


def embedding(count: int, width: int) -> nn.Embedding:
    layer = nn.Embedding(count, width)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def to_residual(in_features: int, spec: GPT2Spec) -> Conv1D:
    """The last layer of a branch: smaller, for 2 · depth of them are summed."""
    return Conv1D(in_features, spec.width, deviation=0.02 / (2 * spec.depth) ** 0.5)


class GPT2Attention(nn.Module):
    """Each token looks at itself and at those before it."""

    def __init__(self, spec: GPT2Spec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.c_attn = Conv1D(spec.width, 3 * spec.width)
        self.c_proj = to_residual(spec.width, spec)

    def forward(self, x: Features, past: Past | None = None) -> Features:
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)) for part in (q, k, v))
        y = attend(q, k, v, None) if past is None else past.attend(q, k, v)
        return self.c_proj(y)


class GPT2MLP(nn.Module):
    """Two linear layers with a GELU, computed from tanh."""

    def __init__(self, spec: GPT2Spec) -> None:
        super().__init__()
        self.c_fc = Conv1D(spec.width, spec.hidden)
        self.c_proj = to_residual(spec.hidden, spec)

    def forward(self, x: Features) -> Features:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    """Attention, then the linear layers; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: GPT2Spec) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(spec.width, eps=1e-5)
        self.attn = GPT2Attention(spec)
        self.ln_2 = nn.LayerNorm(spec.width, eps=1e-5)
        self.mlp = GPT2MLP(spec)

    def forward(self, x: Features, past: Past | None = None) -> Features:
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    """Tokens and their positions to features."""

    def __init__(self, spec: GPT2Spec) -> None:
        super().__init__()
        self.wte = embedding(spec.vocabulary, spec.width)
        self.wpe = embedding(spec.length, spec.width)
        self.h = nn.ModuleList(GPT2Block(spec) for _ in range(spec.depth))
        self.ln_f = nn.LayerNorm(spec.width, eps=1e-5)

    def forward(self, tokens: Tokens, positions: Int[Tensor, "_ length"], pasts: list[Past] | None = None) -> Features:
        x = self.wte(tokens) + self.wpe(positions)
        for i, block in enumerate(self.h):
            x = block(x, None if pasts is None else pasts[i])
        return self.ln_f(x)


class GPT2LMHeadModel(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary) of the tokens that follow."""

    def __init__(self, spec: GPT2Spec) -> None:
        super().__init__()
        self.spec = spec
        self.transformer = GPT2Model(spec)
        self.lm_head = nn.Linear(spec.width, spec.vocabulary, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens: Tokens) -> Logits:
        require_length(self.spec.name, tokens.shape[1], self.spec.length)
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        return self.lm_head(self.transformer(tokens, positions))

    def prefill(
        self, tokens: Tokens, room: int, real: Bool[Tensor, "batch length"] | None = None
    ) -> tuple[Logits, Cache]:
        """Read the beginnings of texts; `decode` goes on with the cache.

        Args:
            room: how many tokens the cache can hold, padding too.
            real: which tokens are not padding; by default all. Padding comes first.

        Raises:
            UserError: no token, or no room for so many.
        """
        spec = self.spec
        require_length(spec.name, tokens.shape[1], spec.length)
        require_length(spec.name, room, spec.length)
        shape = (tokens.shape[0], room, spec.heads, spec.width // spec.heads)
        return self._extended(tokens, Cache.empty(spec.depth, shape, self.lm_head.weight), real)

    def decode(self, tokens: Tokens, cache: Cache) -> tuple[Logits, Cache]:
        """Read the next tokens of the texts, one or more of each.

        Raises:
            UserError: no token, or no room for so many.
        """
        require_length(self.spec.name, tokens.shape[1], self.spec.length)
        return self._extended(tokens, cache, None)

    def _extended(self, tokens: Tokens, cache: Cache, real: Tensor | None) -> tuple[Logits, Cache]:
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.bool()
        cache, pasts, positions = cache.extended(self.spec.name, real)
        return self.lm_head(self.transformer(tokens, positions, pasts)), cache
