"""Faster convolutions for CPUs in NNX."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from ports.fast.convolution import conv_general_dilated


def use(net: nnx.Module) -> nnx.Module:
    """Let every `nnx.Conv` of a network that has XLA's convolution call `ports.fast.convolution` instead."""
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is jax.lax.conv_general_dilated:
            layer: Any = module
            layer.conv_general_dilated = conv_general_dilated
    return net
