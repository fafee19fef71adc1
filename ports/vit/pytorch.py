"""Vision Transformers in PyTorch, NCHW. Read beside nnx.py and linen.py: the same classes in the same order.

Follows torchvision's vision_transformer.py in names, order and initial distributions.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ports.layers.checks import require_size
from ports.vit.spec import ViTSpec

Image = Float[Tensor, "batch channels height width"]
Features = Float[Tensor, "batch length width"]

torch.fx.wrap("require_size")  # a traced network has the check as one call


def linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(layer.bias, std=1e-6)
    return layer


def patches(spec: ViTSpec) -> nn.Conv2d:
    patch = spec.patch_size
    layer = nn.Conv2d(spec.in_channels, spec.width, kernel_size=patch, stride=patch)
    nn.init.normal_(layer.weight, std=(1 / (spec.in_channels * patch * patch)) ** 0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def head(spec: ViTSpec) -> nn.Linear:
    layer = nn.Linear(spec.width, spec.num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class EncoderBlock(nn.Module):
    """Attention, then two linear layers with a GELU; before each a LayerNorm, around each a shortcut."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(spec.width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(spec.width, spec.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(spec.width, eps=1e-6)
        self.mlp = nn.Sequential(
            linear(spec.width, spec.hidden),
            nn.GELU(),
            nn.Identity(),  # torchvision's dropout, whose rate is 0: the second linear layer is its number 3
            linear(spec.hidden, spec.width),
        )

    def forward(self, x: Features) -> Features:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Adds a learned position to every token; the blocks and a LayerNorm follow."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, spec.length, spec.width))
        nn.init.normal_(self.pos_embedding, std=0.02)
        self.layers = nn.Sequential(OrderedDict((f"encoder_layer_{i}", EncoderBlock(spec)) for i in range(spec.depth)))
        self.ln = nn.LayerNorm(spec.width, eps=1e-6)

    def forward(self, x: Features) -> Features:
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv_proj = patches(spec)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.encoder = Encoder(spec)
        self.heads = nn.Sequential(OrderedDict(head=head(spec)))

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        require_size(self.spec.name, (x.shape[2], x.shape[3]), self.spec.input_size)
        x = self.conv_proj(x).flatten(2).transpose(1, 2)  # (batch, patches, width)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.encoder(x)
        return self.heads(x[:, 0])
