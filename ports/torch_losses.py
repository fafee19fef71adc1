"""The losses in PyTorch that families name; `ports.losses` has the same ones in JAX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ports.objective import UNLABELLED


def classification(outputs: Any, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits. For feature maps, which have no labels, the sum of their mean squares.

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
        following: int64 (batch, length); −100 at positions that do not count, such as those after a text.
    """
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


def segmentation(outputs: Any, labels: Tensor) -> Tensor:
    """The mean cross-entropy of the labelled pixels; half of the auxiliary head's is added, as torchvision trains.

    Args:
        outputs: logits (batch, classes, height, width), or a dict of them: `out`, and `aux` where there is such a head.
        labels: int64 (batch, height, width); 255 for pixels that do not count.
    """
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels, ignore_index=UNLABELLED)
    loss = F.cross_entropy(outputs["out"], labels, ignore_index=UNLABELLED)
    if "aux" in outputs:
        loss = loss + 0.5 * F.cross_entropy(outputs["aux"], labels, ignore_index=UNLABELLED)
    return loss
