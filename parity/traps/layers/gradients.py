"""Known mistakes in the gradients of layers whose outputs are right. A new mistake is a new row."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from parity.traps.layers.layer_types import BATCH_NORM, CONV, EMBEDDING, LINEAR, NORM, UP
from parity.traps.layers.wrappers import Around, another_function, constant_statistics
from parity.traps.planting import setting
from parity.traps.trap import Trap


def _frozen(layer: Any) -> nn.Module:
    return layer.requires_grad_(False)


LAYER_GRADIENTS = (
    Trap(
        "bn-statistics-constant",
        "layer",
        BATCH_NORM,
        another_function(constant_statistics),
        "no gradient flows through the batch's statistics; in PyTorch it does",
        "leave out jax.lax.stop_gradient around the batch's mean and variance",
        "Ioffe and Szegedy 2015, section 3",
        gradient=True,
    ),
    Trap(
        "embedding-padding-gradient",
        "layer",
        EMBEDDING,
        setting(padding_idx=None),
        "the row of padding gets a gradient; PyTorch's does not",
        "set the gradient of the row at padding_idx to zero",
        "torch.nn.Embedding: padding_idx",
        gradient=True,
    ),
    Trap(
        "parameters-frozen",
        "layer",
        (*CONV, *UP, *LINEAR, *BATCH_NORM, *NORM, *EMBEDDING),
        _frozen,
        "the layer's parameters get no gradient; PyTorch's do",
        "leave out jax.lax.stop_gradient around the parameters",
        "jax.lax.stop_gradient",
        gradient=True,
    ),
    Trap(
        "layer-gradient-stopped",
        "layer",
        (*CONV, *UP, *LINEAR, *BATCH_NORM, *NORM),
        lambda layer: Around(layer, after=Tensor.detach),
        "the gradient stops after the layer",
        "leave out jax.lax.stop_gradient around the layer's output",
        "jax.lax.stop_gradient",
        gradient=True,
    ),
)
