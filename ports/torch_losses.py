"""The losses in PyTorch that families name; `ports.losses` has the same ones in JAX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def classification(outputs: Any, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits. Of feature maps, which have no labels, the sum of their mean squares.

    Args:
        outputs: logits (batch, classes), or feature maps.
        labels: int64 (batch,).
    """
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels)
    return torch.stack([value.square().mean() for value in outputs]).sum()


def next_token(logits: Tensor, following: Tensor) -> Tensor:
    """The mean cross-entropy over the tokens that follow each position.

    Args:
        logits: (batch, length, tokens).
        following: int64 (batch, length); where nothing counts, as behind a text, −100.
    """
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())
