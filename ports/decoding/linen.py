"""Blocks of a decoder in Linen, as a list or stacked. Read beside nnx.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from ports.decoding.flax import Past

Features = Float[Array, "batch length width"]


def blocks(create: Callable[[], nn.Module], depth: int, stacked: bool) -> Any:
    """Return a list of blocks, or the one block whose weights `run` stacks, each with an additional first axis."""
    return create() if stacked else [create() for _ in range(depth)]


def run(blocks: Any, depth: int, x: Features, pasts: list[Past] | None, *others: Any) -> Features:
    """Run blocks one after the other: each is called with the features, `others` and its own past."""
    if not isinstance(blocks, nn.Module):
        for i, block in enumerate(blocks):
            x = block(x, *others, None if pasts is None else pasts[i])
        return x

    def step(block: Any, x: Features, held: Any) -> tuple[Features, Any]:
        past = None if pasts is None else pasts[0].of_block(*held)
        x = block(x, *others, past)
        return x, None if past is None else (past.keys, past.values)

    scan = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)
    x, held = scan(blocks, x, None if pasts is None else (pasts[0].keys, pasts[0].values))
    if pasts is not None:
        pasts[0].keys, pasts[0].values = held
    return x
