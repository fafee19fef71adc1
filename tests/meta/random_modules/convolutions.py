"""Convolutions over images and sequences, and what changes the size of an image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from torch import nn
from torch.nn import functional as F

from .block import IMAGE, SEQUENCE, Block, in_linen
from .choices import Choices


def around(s: Choices, dimensions: int) -> dict[str, Any]:
    """Return the settings of a Flax convolution that pads both sides alike, as PyTorch does."""
    return {"kernel_size": (s.kernel,) * dimensions, "padding": [(s.kernel // 2, s.kernel // 2)] * dimensions}


class TorchConvBlock(nn.Module):
    """Convolution, BatchNorm, activation."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        pad = s.kernel // 2
        self.conv = nn.Conv2d(s.width, s.width, s.kernel, padding=pad, groups=s.groups, bias=s.bias)
        self.bn, self.act = nn.BatchNorm2d(s.width, eps=s.epsilon), s.torch_act

    def forward(self, x: Any) -> Any:
        return self.act(self.bn(self.conv(x)))


class NnxConvBlock(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        settings = {**around(s, 2), "feature_group_count": s.groups, "use_bias": s.bias}
        self.conv, self.act = nnx.Conv(s.width, s.width, **settings, rngs=rngs), s.jax_act
        self.bn = nnx.BatchNorm(s.width, momentum=0.9, epsilon=s.epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.act(self.bn(self.conv(x)))


class LinenConvBlock(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        x = linen.Conv(s.width, **around(s, 2), feature_group_count=s.groups, use_bias=s.bias, name="conv")(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=s.epsilon, name="bn")(x)
        return s.jax_act(x)


class TorchSeparable(nn.Module):
    """A convolution of each channel, and one of single pixels."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        pad = s.kernel // 2
        self.depthwise = nn.Conv2d(s.width, s.width, s.kernel, padding=pad, groups=s.width, bias=s.bias)
        self.pointwise, self.act = nn.Conv2d(s.width, s.width, 1), s.torch_act

    def forward(self, x: Any) -> Any:
        return self.pointwise(self.act(self.depthwise(x)))


class NnxSeparable(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        settings = {**around(s, 2), "feature_group_count": s.width, "use_bias": s.bias}
        self.depthwise = nnx.Conv(s.width, s.width, **settings, rngs=rngs)
        self.pointwise, self.act = nnx.Conv(s.width, s.width, (1, 1), rngs=rngs), s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.pointwise(self.act(self.depthwise(x)))


class LinenSeparable(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        x = linen.Conv(s.width, **around(s, 2), feature_group_count=s.width, use_bias=s.bias, name="depthwise")(x)
        return linen.Conv(s.width, (1, 1), name="pointwise")(s.jax_act(x))


class TorchConvNext(nn.Module):
    """ConvNeXt's block: depthwise, then LayerNorm and two linear layers on channels last."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(s.width, s.width, s.kernel, padding=s.kernel // 2, groups=s.width)
        self.norm, self.act = nn.LayerNorm(s.width, eps=1e-6), s.torch_act
        self.pwconv1, self.pwconv2 = nn.Linear(s.width, s.hidden), nn.Linear(s.hidden, s.width)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return self.pwconv2(self.act(self.pwconv1(y))).permute(0, 3, 1, 2)


class NnxConvNext(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.dwconv = nnx.Conv(s.width, s.width, **around(s, 2), feature_group_count=s.width, rngs=rngs)
        self.norm, self.act = nnx.LayerNorm(s.width, rngs=rngs), s.jax_act
        self.pwconv1 = nnx.Linear(s.width, s.hidden, rngs=rngs)
        self.pwconv2 = nnx.Linear(s.hidden, s.width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x)))))


class LinenConvNext(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        x = linen.Conv(s.width, **around(s, 2), feature_group_count=s.width, name="dwconv")(x)
        x = s.jax_act(linen.Dense(s.hidden, name="pwconv1")(linen.LayerNorm(name="norm")(x)))
        return linen.Dense(s.width, name="pwconv2")(x)


class TorchBottleneck(nn.Module):
    """Three convolutions, each with its BatchNorm."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(s.width, s.hidden, 1, bias=False), nn.BatchNorm2d(s.hidden)
        self.conv2 = nn.Conv2d(s.hidden, s.hidden, s.kernel, padding=s.kernel // 2, bias=False)
        self.bn2, self.act = nn.BatchNorm2d(s.hidden), s.torch_act
        self.conv3, self.bn3 = nn.Conv2d(s.hidden, s.width, 1, bias=False), nn.BatchNorm2d(s.width)

    def forward(self, x: Any) -> Any:
        x = self.act(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.act(self.bn2(self.conv2(x)))))


class NnxBottleneck(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        norm: dict[str, Any] = {"momentum": 0.9, "epsilon": 1e-5}
        self.conv1 = nnx.Conv(s.width, s.hidden, (1, 1), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(s.hidden, **norm, rngs=rngs)
        self.conv2 = nnx.Conv(s.hidden, s.hidden, **around(s, 2), use_bias=False, rngs=rngs)
        self.bn2, self.act = nnx.BatchNorm(s.hidden, **norm, rngs=rngs), s.jax_act
        self.conv3 = nnx.Conv(s.hidden, s.width, (1, 1), use_bias=False, rngs=rngs)
        self.bn3 = nnx.BatchNorm(s.width, **norm, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.act(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.act(self.bn2(self.conv2(x)))))


class LinenBottleneck(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s

        def norm(name: str) -> Any:
            return linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)

        x = s.jax_act(norm("bn1")(linen.Conv(s.hidden, (1, 1), use_bias=False, name="conv1")(x)))
        x = s.jax_act(norm("bn2")(linen.Conv(s.hidden, **around(s, 2), use_bias=False, name="conv2")(x)))
        return norm("bn3")(linen.Conv(s.width, (1, 1), use_bias=False, name="conv3")(x))


class TorchDown(nn.Module):
    """A strided convolution and an activation."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.conv = nn.Conv2d(s.width, s.width, s.kernel, stride=2, padding=s.kernel // 2, bias=s.bias)
        self.act = s.torch_act

    def forward(self, x: Any) -> Any:
        return self.act(self.conv(x))


class NnxDown(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(s.width, s.width, **around(s, 2), strides=2, use_bias=s.bias, rngs=rngs)
        self.act = s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.act(self.conv(x))


class LinenDown(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        return s.jax_act(linen.Conv(s.width, **around(s, 2), strides=(2, 2), use_bias=s.bias, name="conv")(x))


class TorchUp(nn.Module):
    """A transposed convolution and an activation; the kernel is 2, or 4 with a padding of 1."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        size, pad = (2, 0) if s.kernel < 3 else (4, 1)
        self.up = nn.ConvTranspose2d(s.width, s.width, size, stride=2, padding=pad, bias=s.bias)
        self.act = s.torch_act

    def forward(self, x: Any) -> Any:
        return self.act(self.up(x))


def upwards(s: Choices) -> dict[str, Any]:
    """Return the settings of a transposed convolution in Flax: what PyTorch's padding leaves of the kernel is added."""
    size, pad = (2, 0) if s.kernel < 3 else (4, 1)
    both = (size - 1 - pad, size - 1 - pad)
    settings = {"kernel_size": (size, size), "strides": (2, 2), "padding": (both, both), "transpose_kernel": True}
    return {**settings, "use_bias": s.bias}


class NnxUp(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.up, self.act = nnx.ConvTranspose(s.width, s.width, **upwards(s), rngs=rngs), s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.act(self.up(x))


class LinenUp(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return self.s.jax_act(linen.ConvTranspose(self.s.width, **upwards(self.s), name="up")(x))


class TorchConformer(nn.Module):
    """Conformer's convolutions over a sequence: gated, depthwise, BatchNorm, pointwise."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.inner = nn.Conv1d(s.width, 2 * s.width, 1)
        self.depthwise = nn.Conv1d(s.width, s.width, s.kernel, padding=s.kernel // 2, groups=s.width, bias=s.bias)
        self.bn, self.outer = nn.BatchNorm1d(s.width, eps=s.epsilon), nn.Conv1d(s.width, s.width, 1)
        self.act, self.drop = s.torch_act, nn.Dropout(s.rate)

    def forward(self, x: Any) -> Any:
        y = F.glu(self.inner(x.transpose(1, 2)), dim=1)
        return self.drop(self.outer(self.act(self.bn(self.depthwise(y))))).transpose(1, 2)


class NnxConformer(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        settings = {**around(s, 1), "feature_group_count": s.width, "use_bias": s.bias}
        self.inner = nnx.Conv(s.width, 2 * s.width, (1,), rngs=rngs)
        self.depthwise = nnx.Conv(s.width, s.width, **settings, rngs=rngs)
        self.bn = nnx.BatchNorm(s.width, momentum=0.9, epsilon=s.epsilon, rngs=rngs)
        self.outer, self.act = nnx.Conv(s.width, s.width, (1,), rngs=rngs), s.jax_act
        self.drop = nnx.Dropout(s.rate, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = jax.nn.glu(self.inner(x))
        return self.drop(self.outer(self.act(self.bn(self.depthwise(y)))))


class LinenConformer(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        y = linen.glu(linen.Conv(2 * s.width, (1,), name="inner")(x))
        y = linen.Conv(s.width, **around(s, 1), feature_group_count=s.width, use_bias=s.bias, name="depthwise")(y)
        y = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=s.epsilon, name="bn")(y)
        y = linen.Conv(s.width, (1,), name="outer")(s.jax_act(y))
        return linen.Dropout(s.rate, deterministic=not train)(y)


class TorchCausal(nn.Module):
    """A convolution that sees no later position."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.conv, self.act, self.s = nn.Conv1d(s.width, s.width, s.kernel, bias=s.bias), s.torch_act, s

    def forward(self, x: Any) -> Any:
        return self.act(self.conv(F.pad(x.transpose(1, 2), (self.s.kernel - 1, 0)))).transpose(1, 2)


class NnxCausal(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(s.width, s.width, (s.kernel,), padding="CAUSAL", use_bias=s.bias, rngs=rngs)
        self.act = s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.act(self.conv(x))


class LinenCausal(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        y = linen.Conv(s.width, (s.kernel,), padding="VALID", use_bias=s.bias, name="conv")(
            jnp.pad(x, ((0, 0), (s.kernel - 1, 0), (0, 0)))
        )
        return s.jax_act(y)


class Pool(nnx.Module):
    """Pooling in windows of two pixels: of the largest, or of the mean."""

    def __init__(self, s: Choices) -> None:
        self.pool = pooled(s)

    def __call__(self, x: Any) -> Any:
        return self.pool(x)


def pooled(s: Choices) -> Any:
    pool = nnx.max_pool if s.causal else nnx.avg_pool
    return lambda x: pool(x, (2, 2), strides=(2, 2))


CONVOLUTIONS: dict[str, Block] = {
    "convolution": Block(TorchConvBlock, NnxConvBlock, in_linen(LinenConvBlock), IMAGE),
    "separable convolution": Block(TorchSeparable, NnxSeparable, in_linen(LinenSeparable), IMAGE),
    "ConvNeXt": Block(TorchConvNext, NnxConvNext, in_linen(LinenConvNext), IMAGE),
    "bottleneck": Block(TorchBottleneck, NnxBottleneck, in_linen(LinenBottleneck), IMAGE),
    "strided convolution": Block(TorchDown, NnxDown, in_linen(LinenDown), IMAGE, reshapes=True),
    "transposed convolution": Block(TorchUp, NnxUp, in_linen(LinenUp), IMAGE, reshapes=True),
    "pooling": Block(
        lambda s: nn.MaxPool2d(2) if s.causal else nn.AvgPool2d(2),
        lambda s, rngs: Pool(s),
        lambda s, name, x, train: pooled(s)(x),
        IMAGE,
        reshapes=True,
    ),
    "conformer": Block(TorchConformer, NnxConformer, in_linen(LinenConformer), SEQUENCE),
    "causal convolution": Block(TorchCausal, NnxCausal, in_linen(LinenCausal), SEQUENCE),
}
