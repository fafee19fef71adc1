"""Every mistake in norms that are written as operations, planted."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .planted import Case, sequence

BLOCK = "block"
SCALE, BIAS = np.linspace(0.5, 2.0, 6), np.linspace(-1.0, 0.5, 6)
SCALE_TORCH, BIAS_TORCH = torch.from_numpy(SCALE), torch.from_numpy(BIAS)


def rms(x: Tensor, eps: float = 1e-3) -> Tensor:
    """As LLaMA has it."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def standardised(x: Tensor, eps: float = 1e-3) -> Tensor:
    """As annotated Transformers have it, with the biased variance."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).square().mean(-1, keepdim=True) + eps)


def port(eps: float = 1e-3, mean: bool = False, axis: Any = -1, ddof: int = 0, power: float = 1.0) -> Any:
    """A norm in JAX, without factor."""

    def norm(x: Any) -> Any:
        x = x - x.mean(axis, keepdims=True) if mean else x
        count = np.prod([x.shape[i] for i in np.atleast_1d(axis)])
        return x / jnp.sqrt(jnp.square(x).sum(axis, keepdims=True) / (count - ddof) + eps) ** power

    return norm


def by_heads(x: Tensor) -> Tensor:
    return rms(x.view(2, 5, 2, 3)).flatten(2)


def by_heads_in_front(x: Tensor) -> Tensor:
    return rms(x.view(2, 5, 2, 3).transpose(1, 2)).transpose(1, 2).flatten(2)


def twice(x: Any) -> Any:
    return port()(port()(x) * SCALE) * SCALE


OWN_NORMS = (
    Case("norm-epsilon-is-1e-6", sequence(rms, port(1e-6)), BLOCK),
    Case("norm-epsilon-is-1e-6", sequence(lambda x: F.rms_norm(x, (6,), eps=1e-5), port(1e-6)), BLOCK),
    Case("norm-epsilon-is-1e-5", sequence(standardised, port(1e-5, mean=True)), BLOCK),
    Case("norm-epsilon-is-1e-5", sequence(lambda x: F.layer_norm(x, (6,), eps=1e-12), port(1e-5, mean=True)), BLOCK),
    Case("norm-epsilon-missing", sequence(rms, port(0.0)), BLOCK),
    Case(
        "norm-epsilon-outside", sequence(rms, lambda x: x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + 1e-3)), BLOCK
    ),
    Case(
        "norm-epsilon-outside",
        sequence(
            lambda x: SCALE_TORCH * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
            lambda x: SCALE * x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + 1e-3),
        ),
        BLOCK,
    ),
    Case(
        "norm-epsilon-inside",
        sequence(lambda x: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-3), port()),
        BLOCK,
    ),
    Case("rms-norm-subtracts-mean", sequence(rms, port(mean=True)), BLOCK),
    Case(
        "rms-norm-of-variance",
        sequence(rms, lambda x: x / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)),
        BLOCK,
    ),
    Case("layer-norm-keeps-mean", sequence(standardised, port()), BLOCK),
    Case("norm-variance-unbiased", sequence(standardised, port(mean=True, ddof=1)), BLOCK),
    Case(
        "norm-variance-unbiased",
        sequence(
            lambda x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-3) ** -0.5,
            port(mean=True, ddof=1),
        ),
        BLOCK,
    ),
    Case("norm-scale-plus-one", sequence(lambda x: SCALE_TORCH * rms(x), lambda x: port()(x) * (1 + SCALE)), BLOCK),
    Case("norm-scale-one-lost", sequence(lambda x: rms(x) * (1 + SCALE_TORCH), lambda x: port()(x) * SCALE), BLOCK),
    Case("norm-scale-missing", sequence(lambda x: rms(x) * SCALE_TORCH, port()), BLOCK),
    Case(
        "norm-bias-missing",
        sequence(
            lambda x: standardised(x) * SCALE_TORCH + BIAS_TORCH,
            lambda x: port(mean=True)(x) * SCALE,
        ),
        BLOCK,
    ),
    Case("norm-missing", sequence(lambda x: rms(x) * SCALE_TORCH, lambda x: x), BLOCK),
    Case("norm-missing", sequence(lambda x: standardised(x) * SCALE_TORCH + BIAS_TORCH, lambda x: x), BLOCK),
    Case("norm-twice", sequence(lambda x: rms(x) * SCALE_TORCH, twice), BLOCK),
    Case("norm-axis", sequence(rms, port(axis=-2)), BLOCK),
    Case(
        "norm-over-all-heads",
        sequence(by_heads, lambda x: port(axis=(-2, -1))(x.reshape(2, 5, 2, 3)).reshape(2, 5, 6)),
        BLOCK,
    ),
    Case(
        "norm-over-all-heads-in-front",
        sequence(by_heads_in_front, lambda x: port(axis=(-2, -1))(x.reshape(2, 5, 2, 3)).reshape(2, 5, 6)),
        BLOCK,
    ),
    Case("norm-times-root", sequence(rms, port(power=-1.0)), BLOCK),
    Case("norm-by-variance", sequence(standardised, port(mean=True, power=2.0)), BLOCK),
    Case("norm-by-squared-variance", sequence(standardised, port(mean=True, power=4.0)), BLOCK),
    Case(
        "norm-by-root-of-deviation",
        sequence(
            lambda x: standardised(x) * SCALE_TORCH + BIAS_TORCH,
            lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3) ** 0.5 * SCALE + BIAS,
        ),
        BLOCK,
    ),
)
