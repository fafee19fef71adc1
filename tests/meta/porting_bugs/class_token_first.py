"""MaxText's Llama 4 puts the class token before the patches; the model puts it behind them.

Source: AI-Hypercomputer/maxtext@71e99b279.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import numbers

WIDTH, HEADS, PATCH, PATCHES = 16, 4, 4, 6


class VisionEncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.input_layernorm(x)
        x = x + self.self_attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(nn.functional.gelu(self.fc1(self.post_attention_layernorm(x))))


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding_vlm = nn.Parameter(torch.randn(PATCHES + 1, WIDTH))
        self.layernorm_pre, self.layernorm_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(VisionEncoderLayer() for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.class_embedding.expand(x.shape[0], 1, -1)], 1)
        x = self.layernorm_pre(x + self.positional_embedding_vlm)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm_post(x)[:, :-1]


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = VisionModel()
        self.multi_modal_projector = nn.Linear(WIDTH, 12, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.multi_modal_projector(self.vision_model(images))


class FlaxVisionEncoderLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.input_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.post_attention_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.self_attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.post_attention_layernorm(x)), approximate=False))


class FlaxVisionModel(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.patch_embedding = nnx.Conv(3, WIDTH, (PATCH, PATCH), PATCH, padding="VALID", use_bias=False, rngs=rngs)
        self.class_embedding = nnx.Param(jnp.zeros(WIDTH))
        self.positional_embedding_vlm = nnx.Param(jnp.zeros((PATCHES + 1, WIDTH)))
        self.layernorm_pre = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.layernorm_post = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.layers = nnx.List([FlaxVisionEncoderLayer(rngs) for _ in range(2)])

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patch_embedding(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        token = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, WIDTH))
        x = jnp.concatenate([token, x] if self.wrong else [x, token], 1)
        x = self.layernorm_pre(x + self.positional_embedding_vlm[...])
        for layer in self.layers:
            x = layer(x)
        return self.layernorm_post(x)[:, :-1]


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.vision_model = FlaxVisionModel(wrong, rngs)
        self.multi_modal_projector = nnx.Linear(WIDTH, 12, use_bias=False, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.multi_modal_projector(self.vision_model(images))


BUG = Bug(
    source="AI-Hypercomputer/maxtext@71e99b279",
    what="The class token stands before the patches instead of behind them.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(2, 3, 3 * PATCH, 2 * PATCH),),
    layer="vision_model",
    named=r"concat|\bcat\b|prepend|append|class.?(token|embedding)|first.*last|last.*first|swap|roll",
    kind="vision",
    blind=True,
)
