"""Decoders of Llama's kind in PyTorch. Read beside nnx.py and linen.py: the same classes in the same order.

Follows transformers' modeling_llama.py and modeling_qwen2.py in names, order and initial distributions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ports.decoding.pytorch import Cache, Past, attend
from ports.layers.checks import require_length
from ports.llama.spec import LlamaSpec

Tokens = Int[Tensor, "batch length"]
Features = Float[Tensor, "batch length width"]
Heads = Float[Tensor, "batch length heads width"]
Logits = Float[Tensor, "batch length vocabulary"]
Rotation = tuple[Float[Tensor, "_ length 1 half"], Float[Tensor, "_ length 1 half"]]

torch.fx.wrap("require_length")  # a traced network has these functions as one call
torch.fx.wrap("rotation")


def rotation(positions: Int[Tensor, "_ length"], frequencies: tuple[float, ...], dtype: torch.dtype) -> Rotation:
    """Return cosine and sine of the angles by which each position turns the pairs of features of a head.

    The angles are float32 at least: bfloat16 has no room for the position 257.
    """
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions[..., None].to(wide) * torch.tensor(frequencies, dtype=wide, device=positions.device)
    return angles.cos()[:, :, None].to(dtype), angles.sin()[:, :, None].to(dtype)


def rotated(x: Heads, turn: Rotation) -> Heads:
    """Turn pairs of features: a pair is a feature of the first half and its like of the second."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def linear(in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(spec: LlamaSpec) -> nn.Embedding:
    layer = nn.Embedding(spec.vocabulary, spec.width)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class LlamaAttention(nn.Module):
    """Each token looks at itself and at those before it; groups of queries share keys and values."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.head_width = spec.head_width
        self.q_proj = linear(spec.width, spec.heads * spec.head_width, spec.bias)
        self.k_proj = linear(spec.width, spec.kv_heads * spec.head_width, spec.bias)
        self.v_proj = linear(spec.width, spec.kv_heads * spec.head_width, spec.bias)
        self.o_proj = linear(spec.heads * spec.head_width, spec.width)

    def forward(self, x: Features, turn: Rotation, past: Past | None = None) -> Features:
        q = rotated(self.q_proj(x).unflatten(2, (-1, self.head_width)), turn)
        k = rotated(self.k_proj(x).unflatten(2, (-1, self.head_width)), turn)
        v = self.v_proj(x).unflatten(2, (-1, self.head_width))
        y = attend(q, k, v, None) if past is None else past.attend(q, k, v)
        return self.o_proj(y)


class LlamaMLP(nn.Module):
    """A linear layer, each feature of it multiplied by a gate, and a linear layer back."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.gate_proj = linear(spec.width, spec.hidden)
        self.up_proj = linear(spec.width, spec.hidden)
        self.down_proj = linear(spec.hidden, spec.width)

    def forward(self, x: Features) -> Features:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    """Attention, then the gated MLP; before each an RMSNorm, around each a shortcut."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(spec)
        self.mlp = LlamaMLP(spec)
        self.input_layernorm = nn.RMSNorm(spec.width, eps=spec.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(spec.width, eps=spec.epsilon)

    def forward(self, x: Features, turn: Rotation, past: Past | None = None) -> Features:
        x = x + self.self_attn(self.input_layernorm(x), turn, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Tokens and their positions to features."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.frequencies = spec.frequencies()
        self.embed_tokens = embedding(spec)
        self.layers = nn.ModuleList(LlamaDecoderLayer(spec) for _ in range(spec.depth))
        self.norm = nn.RMSNorm(spec.width, eps=spec.epsilon)

    def forward(self, tokens: Tokens, positions: Int[Tensor, "_ length"], pasts: list[Past] | None = None) -> Features:
        x = self.embed_tokens(tokens)
        cos, sin = rotation(positions, self.frequencies, x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, (cos, sin), None if pasts is None else pasts[i])
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary) of the tokens that follow."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = LlamaModel(spec)
        self.lm_head = linear(spec.width, spec.vocabulary)
        if spec.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tokens) -> Logits:
        require_length(self.spec.name, tokens.shape[1])
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        return self.lm_head(self.model(tokens, positions))

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
        require_length(spec.name, tokens.shape[1])
        shape = (tokens.shape[0], room, spec.kv_heads, spec.head_width)
        return self._extended(tokens, Cache.empty(spec.depth, shape, self.lm_head.weight), real)

    def decode(self, tokens: Tokens, cache: Cache) -> tuple[Logits, Cache]:
        """Read the next tokens of the texts, one or more of each.

        Raises:
            UserError: no token, or no room for so many.
        """
        require_length(self.spec.name, tokens.shape[1])
        return self._extended(tokens, cache, None)

    def _extended(self, tokens: Tokens, cache: Cache, real: Tensor | None) -> tuple[Logits, Cache]:
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.bool()
        cache, pasts, positions = cache.extended(self.spec.name, real)
        return self.lm_head(self.model(tokens, positions, pasts)), cache
