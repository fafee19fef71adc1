"""Every mistake in routers of experts, gated units, sums, tokens and positions, planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import Tensor

from .planted import Case, sequence

BLOCK, NETWORK = "block", "(the network)"
EXPERTS = 6
# What each expert does to the features, which are the router's logits too.
MIXES = np.sin(np.arange(EXPERTS * 36.0)).reshape(EXPERTS, 6, 6)
MIXES_TORCH = torch.from_numpy(MIXES)
ROUTER_BIAS = np.array([0.9, -0.9, 0.5, -0.5, 0.1, -0.1])
ROUTER_BIAS_TORCH = torch.from_numpy(ROUTER_BIAS)


def torch_softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def routed_torch(
    score: Callable[[Tensor], Tensor] | None, *, renormalise: bool = False, bias: bool = False, late: bool = False
) -> Callable[[Tensor], Tensor]:
    """A mixture of two of six experts.

    Args:
        late: the softmax goes over the chosen experts.
    """

    def mix(x: Tensor) -> Tensor:
        scores = x if score is None else score(x)
        weights, chosen = (scores + ROUTER_BIAS_TORCH if bias else scores).topk(2, dim=-1)
        weights = scores.gather(-1, chosen) if bias else weights
        weights = weights.softmax(-1) if late else weights
        weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
        return torch.einsum("btk,btkij,btj->bti", weights, MIXES_TORCH[chosen], x)

    return mix


def routed_jax(
    score: Any = None,
    *,
    renormalise: bool = False,
    choice: Any = None,
    biased: bool = False,
    late: bool = False,
    count: int = 2,
) -> Callable[[Any], Any]:
    """The same in JAX.

    Args:
        choice: what is added to the scores that experts are chosen by.
        biased: the weights are what they are chosen by.
    """

    def mix(x: Any) -> Any:
        scores = x if score is None else score(x)
        best, chosen = jax.lax.top_k(scores if choice is None else scores + choice, count)
        weights = best if biased else jnp.take_along_axis(scores, chosen, -1)
        weights = jax.nn.softmax(weights, -1) if late else weights
        weights = weights / weights.sum(-1, keepdims=True) if renormalise else weights
        return jnp.einsum("btk,btkij,btj->bti", weights, jnp.asarray(MIXES)[chosen], x)

    return mix


def jax_softmax(x: Any) -> Any:
    return jax.nn.softmax(x, -1)


def gated(combine: Callable[[Any, Any], Any], split: Any) -> Callable[[Any], Any]:
    return lambda x: combine(*split(x, 2))


def halves_torch(x: Tensor, n: int) -> Any:
    return x.chunk(n, -1)


def halves_jax(x: Any, n: int) -> Any:
    return jnp.split(x, n, -1)


def gate(right: Any, wrong: Any) -> Any:
    return sequence(gated(right, halves_torch), gated(wrong, halves_jax), width=12, inner=6)


def new_gelu(x: Tensor) -> Tensor:
    """As GPT-2 has it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def quick_gelu(x: Tensor) -> Tensor:
    """As CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


def exact_gelu(x: Any) -> Any:
    return nnx.gelu(x, approximate=False)


TABLE, GAINS = np.cos(np.arange(30.0)).reshape(1, 5, 6), np.linspace(0.2, 1.5, 6)
TABLE_TORCH, GAINS_TORCH = torch.from_numpy(TABLE), torch.from_numpy(GAINS)
KEPT = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], float)[..., None]
KEPT_TORCH = torch.from_numpy(KEPT)
MATRIX = np.sin(np.arange(36.0)).reshape(6, 6)
MATRIX_TORCH = torch.from_numpy(MATRIX)


def masked_mean(x: Tensor) -> Tensor:
    return (x * KEPT_TORCH).sum(1) / KEPT_TORCH.sum(1).clamp(min=1e-9)


def waves_torch(x: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(3, dtype=torch.float64) / (3 - 1))
    angle = 50 * x[..., :1] * frequencies
    return torch.cat([angle.sin(), angle.cos()], -1)


def waves_jax(x: Any) -> Any:
    angle = 50 * x[..., :1] * jnp.exp(-math.log(10000) * jnp.arange(3) / 3)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def pooled(right: Any, wrong: Any) -> Any:
    return sequence(right, wrong, vector=True)


EXPERTS_AND_GATES = (
    Case("softmax-twice", sequence(torch_softmax, lambda x: jax_softmax(jax_softmax(x))), BLOCK),
    Case(
        "router-softmax-of-chosen",
        sequence(routed_torch(torch_softmax), routed_jax(jax_softmax, renormalise=True)),
        BLOCK,
    ),
    Case("router-softmax-of-all", sequence(routed_torch(None, late=True), routed_jax(jax_softmax)), BLOCK),
    Case("router-weights-are-logits", sequence(routed_torch(torch_softmax), routed_jax()), BLOCK),
    Case("router-softmax-for-sigmoid", sequence(routed_torch(torch.sigmoid), routed_jax(jax_softmax)), BLOCK),
    Case("router-sigmoid-for-softmax", sequence(routed_torch(torch_softmax), routed_jax(nnx.sigmoid)), BLOCK),
    Case(
        "router-renormalised",
        sequence(routed_torch(torch.sigmoid), routed_jax(nnx.sigmoid, renormalise=True)),
        BLOCK,
    ),
    Case(
        "router-not-renormalised",
        sequence(routed_torch(torch_softmax, renormalise=True), routed_jax(jax_softmax)),
        BLOCK,
    ),
    Case(
        "router-bias-in-weights",
        sequence(routed_torch(torch.sigmoid, bias=True), routed_jax(nnx.sigmoid, choice=ROUTER_BIAS, biased=True)),
        BLOCK,
    ),
    Case("router-bias-missing", sequence(routed_torch(torch.sigmoid, bias=True), routed_jax(nnx.sigmoid)), BLOCK),
    Case("router-one-expert-less", sequence(routed_torch(torch_softmax), routed_jax(jax_softmax, count=1)), BLOCK),
    Case("gate-exchanged", gate(lambda a, b: F.silu(a) * b, lambda a, b: a * nnx.silu(b)), BLOCK),
    Case("gate-exchanged", gate(lambda a, b: a * F.gelu(b), lambda a, b: exact_gelu(a) * b), BLOCK),
    Case("gate-activation-of-product", gate(lambda a, b: F.silu(a) * b, lambda a, b: nnx.silu(a * b)), BLOCK),
    Case("gate-missing", gate(lambda a, b: F.silu(a) * b, lambda a, b: nnx.silu(a)), BLOCK),
    Case("gate-added", gate(lambda a, b: F.silu(a) * b, lambda a, b: nnx.silu(a) + b), BLOCK),
    Case("cap-is-input", sequence(lambda x: 2 * torch.tanh(x / 2), lambda x: x * jnp.tanh(x / 2)), BLOCK),
    Case("relu-square-missing", sequence(lambda x: F.relu(x).square(), nnx.relu), BLOCK),
    Case("relu-square-missing", sequence(lambda x: F.relu(x) ** 2, nnx.relu), BLOCK),
    Case("written-gelu-is-exact", sequence(new_gelu, exact_gelu), BLOCK),
    Case("written-gelu-is-exact", sequence(quick_gelu, exact_gelu), BLOCK),
    Case("written-gelu-is-tanh", sequence(quick_gelu, nnx.gelu), BLOCK),
    Case(
        "written-gelu-is-tanh",
        sequence(lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), nnx.gelu),
        BLOCK,
    ),
    Case("residual-twice", sequence(lambda x: x + torch.tanh(x), lambda x: 2 * x + jnp.tanh(x)), BLOCK),
    Case("residual-is-branch", sequence(lambda x: x + torch.tanh(x), lambda x: 2 * jnp.tanh(x)), BLOCK),
    Case("position-table-missing", sequence(lambda x: torch.tanh(x + TABLE_TORCH), jnp.tanh), BLOCK),
    Case("gain-missing", sequence(lambda x: x + GAINS_TORCH * torch.tanh(x), lambda x: x + jnp.tanh(x)), BLOCK),
    Case("shift-missing", sequence(lambda x: torch.tanh(x + GAINS_TORCH), jnp.tanh), BLOCK),
    Case("embedding-scale-missing", sequence(lambda x: x * math.sqrt(6), lambda x: x), BLOCK),
    Case("embedding-scaled-twice", sequence(lambda x: x * math.sqrt(6), lambda x: 6 * x), BLOCK),
    Case(
        "logits-divided-by-root",
        sequence(lambda x: F.linear(x, MATRIX_TORCH), lambda x: x @ MATRIX.T / math.sqrt(6)),
        BLOCK,
    ),
    Case("first-token-is-mean", pooled(lambda x: x[:, 0], lambda x: x.mean(1)), NETWORK),
    Case("mean-is-first-token", pooled(lambda x: x.mean(1), lambda x: x[:, 0]), NETWORK),
    Case("mean-counts-class-token", pooled(lambda x: x[:, 1:].mean(1), lambda x: x.mean(1)), NETWORK),
    Case("masked-mean-over-length", pooled(masked_mean, lambda x: (x * KEPT).mean(1)), NETWORK),
    Case("masked-mean-of-all", pooled(masked_mean, lambda x: x.mean(1)), NETWORK),
    Case("wave-frequencies-shifted", sequence(waves_torch, waves_jax), BLOCK),
)
