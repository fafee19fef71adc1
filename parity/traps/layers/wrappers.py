"""Layers of PyTorch with a mistake that is more than a setting or a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class SamePadding(nn.Module):
    """XLA's 'SAME': as many zeros as the output's size needs; an odd one goes to the end."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        conv, pads = self.layer, []
        sizes = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
        for size, kernel, stride, dilation in reversed(list(sizes)):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        return function(F.pad(x, pads), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


class PaddedOnBothSides(nn.Module):
    """A causal convolution that pads like 'SAME': half of the zeros in front of its input stand behind it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        width = (self.layer.kernel_size[0] - 1) * self.layer.dilation[0]
        if width < 1 or x[..., :width].any():
            raise ValueError("the input has no zeros in front: the convolution is not causal")
        return self.layer(x.roll(width // 2 - width, -1))


class Always(nn.Module):
    """The layer in one mode, whatever mode is set."""

    def __init__(self, layer: nn.Module, train: bool) -> None:
        super().__init__()
        self.layer, self.always = layer, train

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.train(self.always)(x)


class BiasedVariance(nn.Module):
    """A running variance that divides the batch's variance by n; PyTorch divides by n − 1."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        # A subclass may take the channels elsewhere than on axis 1.
        old, n = self.layer.running_var.clone(), x.numel() // self.layer.num_features
        y = self.layer(x)
        if self.training:
            kept = (1 - self.layer.momentum) * old
            self.layer.running_var = kept + (self.layer.running_var - kept) * (n - 1) / n
        return y


class NotUpdated(nn.Module):
    """Statistics that stay what they were."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        before = {name: buffer.clone() for name, buffer in self.layer.named_buffers()}
        y = self.layer(x)
        for name, buffer in self.layer.named_buffers():
            buffer.copy_(before[name])
        return y


class Around(nn.Module):
    """The layer with a change of its first input and of its output."""

    def __init__(
        self,
        layer: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda y: y,
    ) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x: Tensor | PackedSequence, *args: Any, **kw: Any) -> Any:
        if isinstance(x, PackedSequence):
            raise ValueError("takes no packed sequence")
        y = self.layer(self.before(x), *args, **kw)
        return (self.after(y[0]), *y[1:]) if isinstance(y, tuple) else self.after(y)


class AnotherFunction(nn.Module):
    """Another function of the layer's input and the layer."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *args: Any, **kw: Any) -> Any:
        return self.function(self.layer, *args, **kw)


def another_function(function: Callable[..., Any], **settings: Any) -> Callable[[Any], nn.Module]:
    """Return what plants `function`, which takes the layer and its input, with these settings."""
    return lambda layer: AnotherFunction(layer, lambda own, *args, **kw: function(own, *args, **settings, **kw))


def same_transposed(layer: Any, x: Tensor) -> Tensor:
    """'SAME' of `jax.lax.conv_transpose`."""
    y, pads = F.conv_transpose2d(x, layer.weight, None, layer.stride, 0, 0, layer.groups, layer.dilation), []
    for k, s in reversed(list(zip(layer.kernel_size, layer.stride, strict=True))):
        total = k + s - 2
        front = k - 1 if s > k - 1 else -(-total // 2)
        pads += [front - (k - 1), total - front - (k - 1)]
    y = F.pad(y, pads)
    return y if layer.bias is None else y + layer.bias.reshape(-1, 1, 1)


def normalised(layer: Any, x: Tensor, *, time: bool = False, mean: bool = True, ddof: int = 0) -> Tensor:
    """LayerNorm over the last axis or over time too, without the mean, or with another variance."""
    axes = tuple(range(1, x.ndim)) if time else (-1,)
    x = x - x.mean(axes, keepdim=True) if mean else x
    size = x.shape[-1] - ddof
    square = x.square().mean(axes, keepdim=True) if time else x.square().sum(-1, keepdim=True) / size
    return x * torch.rsqrt(square + layer.eps) * layer.weight + (0 if layer.bias is None else layer.bias)


def constant_statistics(layer: Any, x: Tensor) -> Tensor:
    """BatchNorm with the batch's statistics as constants: right outputs, wrong gradients."""
    y = layer(x)
    if not layer.training:
        return y
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    mean, var = x.mean(axes).detach(), x.var(axes, correction=0).detach()
    scale = torch.rsqrt(var + layer.eps) * layer.weight
    return (x - mean.reshape(shape)) * scale.reshape(shape) + layer.bias.reshape(shape)
