"""Many small arrays as one: the host's cost of calling a program depends on the number of arrays in and out.

In a residual network four of five arrays are vectors: BatchNorm's, their momentum, counters; most of the rest are small
filters. Inside a program, taking a part of one long vector has no visible cost; as an argument or result, every array
costs some microseconds at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

SMALL = 2**18  # numbers in an array that is packed


class Packed:
    """How a tree of arrays becomes a list in which all its small arrays of a type are one vector.

    Both directions are for use inside `jax.jit`, and change no number.
    """

    def __init__(self, tree: PyTree[jax.Array]) -> None:
        leaves, self.tree = jax.tree.flatten(tree)
        self.shapes = [leaf.shape for leaf in leaves]
        self.large = [i for i, leaf in enumerate(leaves) if leaf.size > SMALL]
        self.small: dict[Any, list[int]] = {}
        for i, leaf in enumerate(leaves):
            if leaf.size <= SMALL:
                self.small.setdefault(leaf.dtype, []).append(i)

    def pack(self, tree: PyTree[jax.Array]) -> list[jax.Array]:
        leaves = jax.tree.leaves(tree)
        vectors = [jnp.concatenate([leaves[i].reshape(-1) for i in group]) for group in self.small.values()]
        return [*vectors, *(leaves[i] for i in self.large)]

    def unpack(self, arrays: Sequence[jax.Array]) -> PyTree[jax.Array]:
        leaves: dict[int, jax.Array] = dict(zip(self.large, arrays[len(self.small) :], strict=True))
        for group, vector in zip(self.small.values(), arrays, strict=False):
            ends = list(accumulate(int(np.prod(self.shapes[i])) for i in group))
            for i, part in zip(group, jnp.split(vector, ends[:-1]), strict=True):
                leaves[i] = part.reshape(self.shapes[i])
        return jax.tree.unflatten(self.tree, [leaves[i] for i in range(len(self.shapes))])
