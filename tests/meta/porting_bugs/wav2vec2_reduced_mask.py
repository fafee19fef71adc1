"""Transformers' Flax Wav2Vec2 shortens the encoder's mask by the adapter's stride, too, which comes behind it.

Source: huggingface/transformers#16725.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import linen
from torch import nn

from . import Bug
from .inputs import numbers, padding

WIDTH, HEADS, SAMPLES = 16, 4, 44


def reduced(lengths: torch.Tensor | jax.Array, with_adapter: bool) -> torch.Tensor | jax.Array:
    """Return how many frames the convolutions leave of so many samples."""
    for kernel, stride in ((3, 2), (3, 2), *(((1, 2),) if with_adapter else ())):
        lengths = (lengths - kernel) // stride + 1
    return lengths


class Wav2Vec2FeatureEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList([nn.Conv1d(1, WIDTH, 3, 2), nn.Conv1d(WIDTH, WIDTH, 3, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        for conv in self.conv_layers:
            x = nn.functional.gelu(conv(x))
        return x.transpose(1, 2)


class Wav2Vec2Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x * mask[..., None]
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        scores = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).masked_fill(~mask[:, None, None], -1e9)
        return self.layer_norm(x + self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Wav2Vec2Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = Wav2Vec2FeatureEncoder()
        self.feature_projection = nn.Linear(WIDTH, WIDTH)
        self.encoder = Wav2Vec2Encoder()
        self.adapter = nn.Conv1d(WIDTH, WIDTH, 3, 2, padding=1)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.feature_projection(self.feature_extractor(x))
        lengths = reduced(attention_mask.sum(1), with_adapter=False)
        x = self.encoder(x, torch.arange(x.shape[1]) < torch.as_tensor(lengths)[:, None])
        return self.adapter(x.transpose(1, 2)).transpose(1, 2)


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wav2vec2, self.lm_head = Wav2Vec2Model(), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.wav2vec2(x, attention_mask))


class FlaxWav2Vec2FeatureEncoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for i in range(2):
            x = linen.gelu(linen.Conv(WIDTH, (3,), 2, "VALID", name=f"conv_layers_{i}")(x), approximate=False)
        return x


class FlaxWav2Vec2Encoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x * mask[..., None]
        q, k, v = (
            linen.Dense(WIDTH, name=name)(x).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = jnp.where(mask[:, None, None], q @ k.swapaxes(-1, -2) / (WIDTH // HEADS) ** 0.5, -1e9)
        heads = (jax.nn.softmax(scores, -1) @ v).swapaxes(1, 2).reshape(x.shape)
        return linen.LayerNorm(epsilon=1e-5, name="layer_norm")(x + linen.Dense(WIDTH, name="out_proj")(heads))


class FlaxWav2Vec2Module(linen.Module):
    wrong: bool

    @linen.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array) -> jax.Array:
        x = linen.Dense(WIDTH, name="feature_projection")(FlaxWav2Vec2FeatureEncoder(name="feature_extractor")(x))
        lengths = jnp.asarray(reduced(attention_mask.sum(1), with_adapter=self.wrong))
        x = FlaxWav2Vec2Encoder(name="encoder")(x, jnp.arange(x.shape[1]) < lengths[:, None])
        return linen.Conv(WIDTH, (3,), 2, padding=1, name="adapter")(x)


class Port(linen.Module):
    wrong: bool = False

    @linen.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array) -> jax.Array:
        x = FlaxWav2Vec2Module(self.wrong, name="wav2vec2")(x, attention_mask)
        return linen.Dense(10, name="lm_head")(x)


BUG = Bug(
    source="huggingface/transformers#16725",
    what="The encoder's mask is as short as the adapter's output, which is half as long.",
    torch=Torch,
    port=lambda wrong: Port(wrong),
    inputs=lambda: (numbers(2, SAMPLES), padding(SAMPLES, SAMPLES, 30).astype(int)),
    layer="wav2vec2.encoder",
    named=r"mask|length|padding",
    kind="attention",
    blind=True,
    trap_added=True,
)
