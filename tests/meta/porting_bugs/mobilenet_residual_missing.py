"""KerasHub's MobileNet lacks the residual around its first depthwise block.

Source: keras-team/keras-hub@5b677e336.
"""

from __future__ import annotations

import jax
import torch
from flax import nnx
from torch import nn

from ports.layers.nnx import BatchNorm

from . import Bug
from .inputs import numbers

CHANNELS, SQUEEZED = 8, 4


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(CHANNELS, SQUEEZED, 1), nn.Conv2d(SQUEEZED, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.conv_expand(self.conv_reduce(x.mean((2, 3), keepdim=True)).relu())
        return x * nn.functional.hardsigmoid(gate)


class DepthwiseSeparableConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
        self.bn1, self.se = nn.BatchNorm2d(CHANNELS), SqueezeExcite()
        self.conv_pw = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.se(self.bn1(self.conv_dw(x)).relu())
        return x + self.bn2(self.conv_pw(y))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.blocks = nn.ModuleList(DepthwiseSeparableConv() for _ in range(2))
        self.classifier = nn.Linear(CHANNELS, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.bn1(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


class FlaxSqueezeExcite(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv_reduce = nnx.Conv(CHANNELS, SQUEEZED, (1, 1), rngs=rngs)
        self.conv_expand = nnx.Conv(SQUEEZED, CHANNELS, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.conv_expand(nnx.relu(self.conv_reduce(x.mean((1, 2), keepdims=True))))
        return x * nnx.hard_sigmoid(gate)


class FlaxDepthwiseSeparableConv(nnx.Module):
    def __init__(self, residual: bool, rngs: nnx.Rngs) -> None:
        self.residual = residual
        self.conv_dw = nnx.Conv(
            CHANNELS, CHANNELS, (3, 3), padding=1, feature_group_count=CHANNELS, use_bias=False, rngs=rngs
        )
        self.bn1, self.se = BatchNorm(CHANNELS, rngs=rngs), FlaxSqueezeExcite(rngs)
        self.conv_pw = nnx.Conv(CHANNELS, CHANNELS, (1, 1), use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.bn2(self.conv_pw(self.se(nnx.relu(self.bn1(self.conv_dw(x))))))
        return x + y if self.residual else y


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.conv_stem = nnx.Conv(3, CHANNELS, (3, 3), 2, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(CHANNELS, rngs=rngs)
        self.blocks = nnx.List([FlaxDepthwiseSeparableConv(i > 0 or not wrong, rngs) for i in range(2)])
        self.classifier = nnx.Linear(CHANNELS, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.hard_swish(self.bn1(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((1, 2)))


BUG = Bug(
    source="keras-team/keras-hub@5b677e336",
    what="The first depthwise block has no residual.",
    torch=Torch,
    port=Port,
    inputs=lambda: (numbers(3, 3, 16, 12),),
    layer="blocks.0",
    named=r"residual|skip|shortcut",
    kind="vision",
    blind=True,
    trap_added=True,
)
