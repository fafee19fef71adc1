"""Models as users of each framework write them, without this package's blocks: a U-Net, a Transformer, a residual LSTM.

Names differ between the frameworks as they do in practice, and so does the way in which layers are made.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen as nn
from flax import nnx
from torch import nn as tnn
from torch.nn import functional as F

# --- U-Net


class DoubleConv(tnn.Module):
    """Twice convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = tnn.Sequential(
            tnn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            tnn.BatchNorm2d(outputs),
            tnn.ReLU(inplace=True),
            tnn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            tnn.BatchNorm2d(outputs),
            tnn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class UNet(tnn.Module):
    """Two levels down and up; sizes that are not whole multiples are padded, as the usual code does."""

    def __init__(self, channels: int = 3, classes: int = 2, width: int = 4) -> None:
        super().__init__()
        self.inc = DoubleConv(channels, width)
        self.down1 = tnn.Sequential(tnn.MaxPool2d(2), DoubleConv(width, 2 * width))
        self.down2 = tnn.Sequential(tnn.MaxPool2d(2), DoubleConv(2 * width, 4 * width))
        self.up1 = tnn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.conv1 = DoubleConv(4 * width, 2 * width)
        self.up2 = tnn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.conv2 = DoubleConv(2 * width, width)
        self.outc = tnn.Conv2d(width, classes, 1)

    @staticmethod
    def join(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.conv1(self.join(self.up1(x3), x2))
        x = self.conv2(self.join(self.up2(x), x1))
        return {"logits": self.outc(x), "bottleneck": x3}


class ConvBlock(nn.Module):
    """`DoubleConv` in Linen."""

    features: int
    relu: bool = True

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for _ in range(2):
            x = nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
            x = nn.relu(x) if self.relu else x
        return x


class LinenUNet(nn.Module):
    """`mistake` plants one: `pad` the join pads on the other side, `relu` a block without its activations."""

    classes: int = 2
    width: int = 4
    mistake: str = ""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> dict[str, Any]:
        def join(x: Any, skip: Any) -> Any:
            dy, dx = skip.shape[1] - x.shape[1], skip.shape[2] - x.shape[2]
            y, z = (dy - dy // 2, dx - dx // 2) if self.mistake == "pad" else (dy // 2, dx // 2)
            x = jnp.pad(x, ((0, 0), (y, dy - y), (z, dx - z), (0, 0)))
            return jnp.concatenate([skip, x], axis=-1)

        def up(features: int) -> nn.ConvTranspose:
            return nn.ConvTranspose(features, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True)

        w = self.width
        x1 = ConvBlock(w)(x, train)
        x2 = ConvBlock(2 * w)(nn.max_pool(x1, (2, 2), strides=(2, 2)), train)
        x3 = ConvBlock(4 * w, relu=self.mistake != "relu")(nn.max_pool(x2, (2, 2), strides=(2, 2)), train)
        x = ConvBlock(2 * w)(join(up(2 * w)(x3), x2), train)
        x = ConvBlock(w)(join(up(w)(x), x1), train)
        return {"logits": nn.Conv(self.classes, (1, 1))(x), "bottleneck": x3}


# --- pre-norm Transformer encoder


class Encoder(tnn.Module):
    """PyTorch's own encoder layers, pre-norm, with embeddings of tokens and positions and a classifier."""

    def __init__(self, vocabulary: int = 17, length: int = 7, width: int = 8, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.tok_emb = tnn.Embedding(vocabulary, width)
        self.pos_emb = tnn.Parameter(torch.randn(1, length, width) * 0.02)
        layer = tnn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = tnn.TransformerEncoder(layer, depth, norm=tnn.LayerNorm(width), enable_nested_tensor=False)
        self.head = tnn.Linear(width, 3)

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tok_emb(tokens) + self.pos_emb
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.head(x[:, 0]), x


class Block(nnx.Module):
    """An encoder layer in NNX."""

    def __init__(self, width: int, heads: int, mistake: str, rngs: nnx.Rngs) -> None:
        epsilon = 1e-6 if mistake == "epsilon" else 1e-5
        self.ln1 = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(heads, width, dropout_rate=0.1, decode=False, rngs=rngs)
        self.ln2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.mlp_in = nnx.Linear(width, 2 * width, rngs=rngs)
        self.mlp_out = nnx.Linear(2 * width, width, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.tanh = mistake == "gelu"

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.drop(self.attn(self.ln1(x), mask=mask))
        y = self.mlp_in(self.ln2(x))
        return x + self.drop(self.mlp_out(self.drop(nnx.gelu(y, approximate=self.tanh))))


class NNXEncoder(nnx.Module):
    """`mistake` plants one: `epsilon` LayerNorm's default, `gelu` the tanh approximation, which is Flax's default."""

    def __init__(
        self,
        vocabulary: int = 17,
        length: int = 7,
        width: int = 8,
        heads: int = 2,
        depth: int = 2,
        mistake: str = "",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, length, width)))
        self.blocks = nnx.List([Block(width, heads, mistake if i == 1 else "", rngs) for i in range(depth)])
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.classifier = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, tokens: jax.Array, padding: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.embed(tokens) + self.positions[...]
        mask = ~padding[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return self.classifier(x[:, 0]), x


# --- residual LSTM


class ResidualLSTM(tnn.Module):
    """Two LSTMs, each with a shortcut, and a classifier of the last step."""

    def __init__(self, inputs: int = 5, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.proj = tnn.Linear(inputs, width)
        self.lstm1 = tnn.LSTM(width, width, batch_first=True)
        self.lstm2 = tnn.LSTM(width, width, batch_first=True)
        self.norm = tnn.LayerNorm(width)
        self.fc = tnn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        x = x + self.lstm1(x)[0]
        x = x + self.lstm2(x)[0]
        return self.fc(self.norm(x)[:, -1])


class LinenResidualLSTM(nn.Module):
    """`mistake` plants one: `residual` no sum after the second LSTM, `last` the first step is taken."""

    width: int = 6
    classes: int = 4
    mistake: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width)(x)
        lstm: Any = nn.RNN(nn.OptimizedLSTMCell(self.width))
        x = x + lstm(x)
        lstm = nn.RNN(nn.OptimizedLSTMCell(self.width))
        y = lstm(x)
        x = y if self.mistake == "residual" else x + y
        x = nn.LayerNorm(epsilon=1e-5)(x)
        return nn.Dense(self.classes)(x[:, 0 if self.mistake == "last" else -1])


class NNXResidualLSTM(nnx.Module):
    """`ResidualLSTM` in NNX."""

    def __init__(self, inputs: int = 5, width: int = 6, classes: int = 4, *, rngs: nnx.Rngs) -> None:
        self.inp = nnx.Linear(inputs, width, rngs=rngs)
        self.rnn_a: Any = nnx.RNN(nnx.OptimizedLSTMCell(width, width, rngs=rngs))
        self.rnn_b: Any = nnx.RNN(nnx.OptimizedLSTMCell(width, width, rngs=rngs))
        self.ln = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.inp(x)
        x = x + self.rnn_a(x)
        x = x + self.rnn_b(x)
        return self.out(self.ln(x)[:, -1])
