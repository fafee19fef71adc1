"""Layers in PyTorch that networks of several families share. Read beside nnx.py and linen.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def resize_bilinear(
    x: Float[Tensor, "batch channels _ _"], size: tuple[int, int]
) -> Float[Tensor, "batch channels _ _"]:
    """Resize images as PyTorch does by default, without aligned corners and without averaging."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out) in PyTorch too, as in transformers' class of this name.

    Args:
        deviation: of the initial weights, which are normally distributed. Biases are zero.
    """

    def __init__(self, in_features: int, out_features: int, deviation: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.normal_(self.weight, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)
