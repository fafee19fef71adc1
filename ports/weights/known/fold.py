"""BatchNorm folded into the convolution before it, for inference.

y = scale · (conv(x) + bias − mean) / √(var + ε) + shift is one convolution.

Computed in float64 and rounded once, to the convolution's own type. A BatchNorm that does not follow a convolution (the
first of a pre-activation block, the last of such a network) stays.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ports.family import Layer
from ports.weights.form.torch_form import WeightsError

EPSILON = 1e-5  # of every BatchNorm in these networks


def pairs(layers: Sequence[Layer]) -> dict[str, str]:
    """The convolution directly before a BatchNorm, by their PyTorch names."""
    found = {}
    for conv, bn in itertools.pairwise(layers):
        behind = conv.type == "conv" and bn.type == "batch_norm" and bn.role != "last.bn"
        shortcuts = (conv.role == "shortcut.conv") == (bn.role == "shortcut.bn")
        if behind and shortcuts and conv.fields.get("at") == bn.fields.get("at"):
            found[bn.torch] = conv.torch
    return found


def folded(layers: Sequence[Layer]) -> list[Layer]:
    """The remaining layers; each convolution that absorbed a BatchNorm has a bias."""
    found = pairs(layers)
    result = []
    for layer in layers:
        if layer.torch in found.values():
            shapes = {"weight": layer.shapes["weight"], "bias": layer.shapes["weight"][:1]}
            result.append(dataclasses.replace(layer, shapes=shapes))
        elif layer.torch not in found:
            result.append(layer)
    return result


def fold(weights: Mapping[str, Any], layers: Sequence[Layer], dtype: str | None = None) -> tuple[dict[str, Any], int]:
    """The weights of the folded network, and how many BatchNorms it lost.

    Args:
        dtype: of the new weights and biases; by default the convolution's.

    Raises:
        WeightsError: a variance that is negative or NaN.
    """
    found = pairs(layers)
    result = dict(weights)
    for bn, conv in found.items():
        scale, shift, mean, var = (
            np.asarray(result.pop(f"{bn}.{name}")).astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        result.pop(f"{bn}.num_batches_tracked", None)
        if not np.all(var + EPSILON > 0):
            raise WeightsError(f"{bn}.running_var: holds {var.min()}, expected no negative number")
        factor = scale / np.sqrt(var + EPSILON)
        weight = np.asarray(result[f"{conv}.weight"])
        bias = np.asarray(result[f"{conv}.bias"]).astype(np.float64) if f"{conv}.bias" in result else 0.0
        kind = dtype or weight.dtype
        window = (-1,) + (1,) * (weight.ndim - 1)
        result[f"{conv}.weight"] = (weight.astype(np.float64) * factor.reshape(window)).astype(kind)
        result[f"{conv}.bias"] = ((bias - mean) * factor + shift).astype(kind)
    return result, len(found)
