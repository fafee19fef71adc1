"""Blocks of a decoder in NNX, as a list or stacked. Read beside linen.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from ports.decoding.flax import Past

Features = Float[Array, "batch length width"]


def blocks(create: Callable[[nnx.Rngs], nnx.Module], depth: int, stacked: bool, rngs: nnx.Rngs) -> Any:
    """Return a list of blocks, or one module with the weights of all, each with an additional first axis."""
    if stacked:
        return nnx.split_rngs(splits=depth)(nnx.vmap(create))(rngs)
    return nnx.List([create(rngs) for _ in range(depth)])


def run(blocks: Any, x: Features, pasts: list[Past] | None, *others: Any) -> Features:
    """Run blocks one after the other: each is called with the features, `others` and its own past."""
    if isinstance(blocks, nnx.List):
        for i, block in enumerate(blocks):
            x = block(x, *others, None if pasts is None else pasts[i])
        return x

    graph, weights = nnx.split(blocks)

    def step(x: Features, own: Any) -> tuple[Features, Any]:
        weights, held = own
        past = None if pasts is None else pasts[0].of_block(*held)
        x = nnx.merge(graph, weights)(x, *others, past)
        return x, None if past is None else (past.keys, past.values)

    # `nnx.scan` refuses a network that a function under `jax.jit` closes over.
    x, held = jax.lax.scan(step, x, (weights, None if pasts is None else (pasts[0].keys, pasts[0].values)))
    if pasts is not None:
        pasts[0].keys, pasts[0].values = held
    return x
