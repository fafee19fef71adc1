"""Every mistake in activations and sums, and in gradients where the values are right, planted."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from .planted import Case, between, sequence

BLOCK = "block"


def quantised(x: np.ndarray) -> np.ndarray:
    """Images with a black half: behind a convolution without bias it is exactly zero."""
    x = x.copy()
    x[..., : x.shape[-1] // 2] = 0
    return x


def black(right: Any, wrong: Any, **kw: Any) -> Any:
    return between(right, wrong, bias=False, change=quantised, size=(9, 10), **kw)


def celu(alpha: float) -> Any:
    return lambda x: nnx.celu(x, alpha)


ACTIVATIONS = (
    Case("relu-missing", between(torch.relu, lambda x: x), BLOCK),
    Case("relu-missing", between(torch.relu, lambda x: x, port="linen"), BLOCK),
    Case("relu-is-gelu", between(torch.relu, nnx.gelu), BLOCK),
    Case("relu-is-silu", between(F.relu, nnx.silu), BLOCK),
    Case("relu-is-leaky", sequence(torch.relu, nnx.leaky_relu), BLOCK),
    Case("relu-is-relu6", between(torch.relu, nnx.relu6, scale=9.0), BLOCK),
    Case("gelu-tanh", sequence(F.gelu, nnx.gelu), BLOCK),
    Case("gelu-tanh", between(F.gelu, nnx.gelu, port="linen"), BLOCK),
    Case("gelu-quick", sequence(F.gelu, lambda x: x * jax.nn.sigmoid(1.702 * x)), BLOCK),
    Case("gelu-is-silu", sequence(partial(F.gelu, approximate="tanh"), nnx.silu), BLOCK),
    Case("gelu-is-relu", sequence(F.gelu, nnx.relu, port="linen"), BLOCK),
    Case("gelu-missing", sequence(F.gelu, lambda x: x), BLOCK),
    Case("leaky-slope", between(lambda x: F.leaky_relu(x, 0.2), nnx.leaky_relu), BLOCK),
    Case("silu-missing", between(F.silu, lambda x: x), BLOCK),
    Case("silu-is-hardswish", between(F.silu, nnx.hard_swish), BLOCK),
    Case("silu-is-gelu", between(F.silu, nnx.gelu), BLOCK),
    Case("relu6-is-relu", between(torch.nn.ReLU6(), nnx.relu, scale=9.0), BLOCK),
    Case("hardtanh-bounds-lost", between(lambda x: F.hardtanh(x, -0.5, 2.0), nnx.hard_tanh), BLOCK),
    Case("hardtanh-is-tanh", between(F.hardtanh, jnp.tanh), BLOCK),
    Case("elu-alpha-lost", between(lambda x: F.elu(x, 0.5), nnx.elu), BLOCK),
    Case("elu-is-celu", between(lambda x: F.elu(x, 0.5), celu(0.5)), BLOCK),
    Case("celu-is-elu", between(lambda x: F.celu(x, 0.5), lambda x: nnx.elu(x, 0.5)), BLOCK),
    Case("selu-is-elu", sequence(F.selu, nnx.elu), BLOCK),
    Case("softplus-beta-lost", sequence(lambda x: F.softplus(x, 2.0), nnx.softplus), BLOCK),
    Case("softplus-is-relu", sequence(F.softplus, nnx.relu), BLOCK),
    Case("hardswish-is-silu", between(F.hardswish, nnx.silu), BLOCK),
    Case("hardsigmoid-is-sigmoid", between(F.hardsigmoid, nnx.sigmoid), BLOCK),
    Case("hardsigmoid-slope", between(F.hardsigmoid, lambda x: jnp.clip(0.2 * x + 0.5, 0, 1)), BLOCK),
    Case("mish-is-silu", between(F.mish, nnx.silu), BLOCK),
    Case("tanh-missing", sequence(torch.tanh, lambda x: x, port="linen"), BLOCK),
    Case("sigmoid-missing", sequence(torch.sigmoid, lambda x: x), BLOCK),
    Case("glu-halves", sequence(F.glu, lambda x: nnx.sigmoid(x[..., :3]) * x[..., 3:], inner=3), BLOCK),
    Case("log-softmax-missing", sequence(lambda x: x.log_softmax(-1), lambda x: x), BLOCK),
    Case("softmax-missing", sequence(lambda x: x.softmax(-1), lambda x: x), BLOCK),
    Case("sum-lacks-second", between(lambda x: x + torch.tanh(x), lambda x: x), BLOCK),
    Case("sum-lacks-first", between(lambda x: x + torch.tanh(x), jnp.tanh, port="linen"), BLOCK),
    Case(
        "relu-before-sum",
        between(lambda x: torch.relu(x + torch.sin(x)), lambda x: x + nnx.relu(jnp.sin(x)), scale=3.0),
        BLOCK,
    ),
    Case(
        "relu-before-sum-first",
        between(lambda x: torch.relu(x.square() - 1 + x), lambda x: nnx.relu(x * x - 1) + x),
        BLOCK,
    ),
    Case("relu-after-sum", between(lambda x: x + torch.relu(torch.sin(x)), lambda x: nnx.relu(x + jnp.sin(x))), BLOCK),
    Case("scale-missing", between(lambda x: x + 0.1 * torch.tanh(x), lambda x: x + jnp.tanh(x)), BLOCK),
    Case("scale-missing", sequence(lambda x: x / 6**0.5, lambda x: x, port="linen"), BLOCK),
    Case("scale-inverse", sequence(lambda x: x * 6**0.5, lambda x: x / 6**0.5), BLOCK),
    Case(
        "fourier-norm-added",
        sequence(
            lambda x: x + torch.fft.fft2(x, dim=(-2, -1)).real,
            lambda x: x + jnp.fft.fft2(x, axes=(-2, -1), norm="ortho").real,
        ),
        BLOCK,
    ),
    Case(
        "fourier-norm-missing",
        sequence(
            lambda x: x + torch.fft.fft(x, norm="ortho").real,
            lambda x: x + jnp.fft.fft(x).real,
        ),
        BLOCK,
    ),
    Case("clamp-missing", between(lambda x: x.clamp(-0.5, 0.5), lambda x: x), BLOCK),
    Case("relu-gradient-half", black(torch.relu, lambda x: jnp.maximum(x, 0)), BLOCK),
    Case("abs-gradient-one", black(torch.abs, jnp.abs), BLOCK),
    Case("leaky-gradient-one", black(F.leaky_relu, nnx.leaky_relu), BLOCK),
    Case("clamp-gradient-half", black(lambda x: x.clamp(0, 6), lambda x: jnp.clip(x, 0, 6)), BLOCK),
    Case(
        "max-gradient-shared",
        black(lambda x: x.max(2, keepdim=True)[0] + x, lambda x: x.max(1, keepdims=True) + x),
        BLOCK,
    ),
    Case(
        "stop-gradient-missing",
        between(lambda x: x * torch.sigmoid(x.detach()), lambda x: x * nnx.sigmoid(x)),
        BLOCK,
    ),
    Case(
        "stop-gradient-added",
        between(lambda x: x + torch.tanh(x), lambda x: x + jax.lax.stop_gradient(jnp.tanh(x))),
        BLOCK,
    ),
    Case(
        "stop-gradient-added",
        sequence(torch.tanh, lambda x: jax.lax.stop_gradient(jnp.tanh(x)), port="linen"),
        BLOCK,
    ),
)
