"""Faster kernels for CPUs, which you switch on by name: no network uses them by default.

    net = ports.fast.use(ports.create("resnet50", "nnx"))           # nnx.Module or torch.nn.Module: changed in place
    module, variables = ports.fast.use((module, variables))         # Linen: a module around yours, the same variables

The names and values of weights stay the same. On devices other than CPUs nothing changes: the Flax networks choose by
`jax.lax.platform_dependent`, so that a program for several platforms can still be exported. What changes:

| framework | convolutions | meant for |
|---|---|---|
| PyTorch | a strided window of one pixel, its pixels taken first | training |
| PyTorch | 3 by 3 in fewer products (`ports.fast.filtering`) | inference with Inductor's freezing |
| NNX, Linen | products, Winograd, few groups (`ports.fast.convolution`) | training and inference |

Rounding differs from the plain network's by a few units in the last place; an inf in the input may become NaN in the
neighbouring outputs. In Flax there is no forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) and in PyTorch no
`torch.fx.symbolic_trace`: use the plain network for these.
"""

from __future__ import annotations

import importlib
from typing import Any

from ports.frameworks import framework_of


def use(net: Any) -> Any:
    """Switch a network to faster convolutions for CPUs.

    Args:
        net: a `torch.nn.Module` or `nnx.Module`, changed in place; or Linen's `(module, variables)`.

    Returns: the same object; for Linen, a module that wraps yours, and the same variables.

    Raises:
        UserError: `net` is not a network of one of the three.
    """
    return importlib.import_module(f"ports.fast.{framework_of(net)}").use(net)
