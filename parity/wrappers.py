"""Layers of PyTorch with a mistake that is more than a setting or a tensor."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class SamePadding(nn.Module):
    """'SAME' of XLA: as many zeros as the output's size needs, the odd one behind."""

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


class Always(nn.Module):
    """The layer in one mode, whatever it is told."""

    def __init__(self, layer: nn.Module, train: bool) -> None:
        super().__init__()
        self.layer, self.always = layer, train

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.train(self.always)(x)


class BiasedVariance(nn.Module):
    """A running variance of the batch's variance over n, where PyTorch's is over n − 1."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        old, n = self.layer.running_var.clone(), x.numel() // x.shape[1]
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
