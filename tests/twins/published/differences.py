"""Differences of published ports that several rows have, with their sources."""

from __future__ import annotations

from ..twin import Difference

TANH = "jax.nn.gelu is the tanh approximation by default (jax/_src/nn/functions.py:437)"
# What a BatchNorm of NNX does by default.
NNX_VARIANCE = "nnx.BatchNorm keeps the biased variance (flax/nnx/nn/normalization.py:407)"
NNX_MOMENTUM = "nnx.BatchNorm's default momentum is 0.99 (flax/nnx/nn/normalization.py:295)"


def gelu(layers: str, pytorch: str, flax: str) -> Difference:
    """Return the difference of GELU's forms, at these layers."""
    return Difference(
        "PyTorch's GELU is the exact one, Flax's the tanh approximation",
        pytorch,
        f"{flax}; {TANH}",
        layers=layers,
        trap="gelu-tanh",
    )


def variance(layers: str, pytorch: str, flax: str) -> Difference:
    """Return the difference of the running variance, at these layers."""
    return Difference(
        "PyTorch keeps n / (n - 1) of the batch's variance as the running variance, Flax keeps the variance itself",
        pytorch,
        flax,
        layers=layers,
        trap="bn-running-var",
    )


def momentum(layers: str, pytorch: str, flax: str, trap: str) -> Difference:
    """Return the difference of the momentum, at these layers."""
    return Difference(
        "PyTorch's running statistics take 0.1 of each batch, Flax's another part",
        pytorch,
        flax,
        layers=layers,
        trap=trap,
    )
