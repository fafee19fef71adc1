"""Every mistake in attention that is written as operations, or called as one function, planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .planted import Case, Make, sequence

BLOCK, STEPS, HEADS, DEPTH = "block", 5, 2, 4
Array = Any

QUERIES, KEYS = np.arange(STEPS)[:, None], np.arange(STEPS)
CAUSAL = QUERIES >= KEYS
WINDOW = CAUSAL & (QUERIES - KEYS < 3)
PADDING = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)[:, None, None]
BIAS = np.sin(np.arange(50.0)).reshape(HEADS, STEPS, STEPS)
EMPTY = CAUSAL & (QUERIES != 2)
LATE = QUERIES[:3] >= KEYS - 2


def own(
    mask: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    cap: float | None = None,
    scale: float = DEPTH**-0.5,
    form: str = "fill",
    queries: int = STEPS,
    heads: int = HEADS,
    scale_last: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Attention in PyTorch, of a sequence to itself, by heads.

    Args:
        form: how the mask is applied: `fill`, `where`, `add`; or `function` for PyTorch's own function.
        queries: only so many.
    """
    kept = None if mask is None else torch.from_numpy(mask)
    added = None if bias is None else torch.from_numpy(bias)
    low = None if kept is None else torch.zeros(kept.shape, dtype=torch.float64).masked_fill(~kept, float("-inf"))

    def attend(x: Tensor) -> Tensor:
        h = x.view(2, STEPS, heads, -1).transpose(1, 2)
        q = h[:, :, :queries]
        if form == "function":
            y = F.scaled_dot_product_attention(q, h, h, attn_mask=kept if added is None else added, scale=scale)
            return y.transpose(1, 2).flatten(2)
        bare = scale == 1 or scale_last
        scores = torch.einsum("bhqd,bhkd->bhqk", q, h) if bare else q @ h.transpose(-2, -1) * scale
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        scores = scores if added is None else scores + added
        scores = scores * scale if scale_last else scores
        if kept is not None and form == "fill":
            scores = scores.masked_fill(~kept, float("-inf"))
        elif kept is not None and form == "where":
            scores = torch.where(kept, scores, torch.finfo(torch.float32).min)
        elif low is not None:
            scores = scores + low
        return (scores.softmax(-1) @ h).transpose(1, 2).flatten(2)

    return attend


def port(
    mask: Any = None,
    bias: Any = None,
    *,
    cap: float | None = None,
    cap_last: bool = False,
    scale: float = DEPTH**-0.5,
    fill: float = -np.inf,
    axis: int = -1,
    scale_last: bool = False,
    weights: Callable[[Array], Array] = lambda w: w,
    scores: Callable[[Array], Array] = lambda s: s,
    queries: int = STEPS,
    heads: int = HEADS,
) -> Callable[[Array], Array]:
    """Attention in JAX."""

    def capped(s: Array) -> Array:
        return s if cap is None else jnp.tanh(s / cap) * cap

    def attend(x: Array) -> Array:
        h = x.reshape(2, STEPS, heads, -1).transpose(0, 2, 1, 3)
        s = h[:, :, :queries] @ h.swapaxes(-1, -2) * (1 if scale_last else scale)
        s = s if cap_last else capped(s)
        s = (s if bias is None else s + bias) * (scale if scale_last else 1)
        s = s if mask is None else jnp.where(mask, s, fill)
        w = jax.nn.softmax(scores(capped(s) if cap_last else s), axis)
        return (weights(w) @ h).transpose(0, 2, 1, 3).reshape(2, queries, -1)

    return attend


def attention(right: Any, wrong: Any) -> Make:
    return sequence(right, wrong, width=HEADS * DEPTH, inner=HEADS * DEPTH, scale=2.0)


def empty(value: float) -> Callable[[Array], Array]:
    """Weights of the queries that keep no key."""
    return lambda w: jnp.where(EMPTY.any(-1, keepdims=True), w, value)


def with_sink(x: Tensor) -> Tensor:
    """Attention in PyTorch with a score of each head that no key has."""
    h = x.view(2, STEPS, HEADS, -1).transpose(1, 2)
    sink = torch.linspace(0.5, 1.5, HEADS, dtype=x.dtype).view(1, -1, 1, 1).expand(2, HEADS, STEPS, 1)
    scores = torch.cat([h @ h.transpose(-2, -1) * DEPTH**-0.5, sink], -1)
    return (scores.softmax(-1)[..., :-1] @ h).transpose(1, 2).flatten(2)


def zeroed(x: Tensor) -> Tensor:
    """Attention in PyTorch whose queries without keys get weights of zero."""
    h, kept = x.view(2, STEPS, HEADS, -1).transpose(1, 2), torch.from_numpy(EMPTY)
    weights = (h @ h.transpose(-2, -1) * DEPTH**-0.5).masked_fill(~kept, -1e9).softmax(-1)
    return (weights.masked_fill(~kept.any(-1, keepdim=True), 0.0) @ h).transpose(1, 2).flatten(2)


def alibi(slopes: Any) -> np.ndarray:
    """The bias of three heads."""
    return -np.array(slopes)[:, None, None] * abs(QUERIES - KEYS)


SLOPES, ONE_SERIES = alibi([2.0**-4, 2.0**-8, 2.0**-2]), alibi([2 ** (-8 * i / 3) for i in (1, 2, 3)])
BOTH, BAND = CAUSAL & PADDING, abs(QUERIES - KEYS) < 2

OWN_ATTENTION = (
    Case("attention-scale-by-width", attention(own(CAUSAL), port(CAUSAL, scale=(HEADS * DEPTH) ** -0.5)), BLOCK),
    Case(
        "attention-scale-by-width",
        attention(own(form="function"), port(scale=(HEADS * DEPTH) ** -0.5)),
        BLOCK,
    ),
    Case("attention-scaled-twice", attention(own(scale=0.3), port(scale=0.09)), BLOCK),
    Case("attention-scale-without-root", attention(own(scale=0.4), port(scale=1 / DEPTH)), BLOCK),
    Case("attention-scale-power-of-two", attention(own(heads=1), port(scale=2.0**-4, heads=1)), BLOCK),
    Case("attention-scale-added", attention(own(scale=1), port()), BLOCK),
    Case("attention-scale-default", attention(own(CAUSAL, scale=0.3), port(CAUSAL)), BLOCK),
    Case("attention-scale-default", attention(own(CAUSAL, scale=0.3, form="function"), port(CAUSAL)), BLOCK),
    Case("attention-softmax-over-queries", attention(own(), port(axis=-2)), BLOCK),
    Case("attention-sees-next", attention(own(CAUSAL), port(QUERIES >= KEYS - 1)), BLOCK),
    Case("attention-sees-next", attention(own(CAUSAL, form="function"), port(QUERIES >= KEYS - 1)), BLOCK),
    Case("attention-misses-itself", attention(own(CAUSAL, form="add"), port(QUERIES > KEYS)), BLOCK),
    Case("attention-misses-itself-finite", attention(own(CAUSAL), port(QUERIES > KEYS, fill=-1e30)), BLOCK),
    Case("attention-causal-mask-missing", attention(own(BOTH), port(PADDING)), BLOCK),
    Case("attention-padding-seen-too", attention(own(BOTH, form="where"), port(CAUSAL)), BLOCK),
    Case("attention-mask-missing", attention(own(PADDING, form="where"), port()), BLOCK),
    Case("attention-mask-missing", attention(own(CAUSAL, form="add"), port()), BLOCK),
    Case("attention-mask-inverted", attention(own(BAND, form="add"), port(~BAND)), BLOCK),
    Case("attention-mask-transposed", attention(own(CAUSAL), port(CAUSAL.T)), BLOCK),
    Case("attention-masked-scores-zero", attention(own(CAUSAL), port(CAUSAL, fill=0.0)), BLOCK),
    Case("attention-masked-afterwards", attention(own(CAUSAL), port(weights=lambda w: w * CAUSAL)), BLOCK),
    Case("attention-mask-added-as-ones", attention(own(PADDING), port(bias=1.0 * PADDING)), BLOCK),
    Case(
        "attention-empty-row-zero",
        attention(own(EMPTY, form="where"), port(EMPTY, fill=-1e38, weights=empty(0.0))),
        BLOCK,
    ),
    Case("attention-empty-row-uniform", attention(own(EMPTY, form="function"), port(EMPTY, fill=-1e38)), BLOCK),
    Case("attention-empty-row-not-zeroed", attention(zeroed, port(EMPTY, fill=-1e9)), BLOCK),
    Case("attention-sink-missing", attention(with_sink, port()), BLOCK),
    Case(
        "alibi-slopes-one-series",
        sequence(own(bias=SLOPES, heads=3), port(bias=ONE_SERIES, heads=3), width=12, inner=12, scale=2.0),
        BLOCK,
    ),
    Case("attention-window-wider", attention(own(WINDOW), port(CAUSAL & (QUERIES - KEYS < 4))), BLOCK),
    Case("attention-window-narrower", attention(own(WINDOW), port(CAUSAL & (QUERIES - KEYS < 2))), BLOCK),
    Case("attention-window-missing", attention(own(WINDOW), port(CAUSAL)), BLOCK),
    Case("attention-window-both-sides", attention(own(WINDOW), port(abs(QUERIES - KEYS) < 3)), BLOCK),
    Case(
        "attention-causal-alignment",
        attention(own(LATE, queries=3), port(QUERIES[:3] >= KEYS, queries=3)),
        BLOCK,
    ),
    Case("attention-bias-missing", attention(own(bias=BIAS), port()), BLOCK),
    Case("attention-bias-transposed", attention(own(bias=BIAS), port(bias=BIAS.swapaxes(1, 2))), BLOCK),
    Case("attention-bias-sign", attention(own(bias=BIAS), port(bias=-BIAS)), BLOCK),
    Case("attention-bias-scaled", attention(own(bias=BIAS), port(bias=BIAS, scale_last=True)), BLOCK),
    Case("attention-bias-unscaled", attention(own(bias=BIAS, scale_last=True), port(bias=BIAS)), BLOCK),
    Case("attention-cap-missing", attention(own(CAUSAL, cap=1.0), port(CAUSAL)), BLOCK),
    Case("attention-cap-behind-mask", attention(own(CAUSAL, cap=1.0), port(CAUSAL, cap=1.0, cap_last=True)), BLOCK),
)
