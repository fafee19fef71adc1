"""Over which axes a model sums the products with a tensor.

Each number of a tensor gets an identity. The identities are followed through both models, through everything that only
moves numbers, to the sums of products with what is computed from the inputs: products of matrices, convolutions, and
products that are summed afterwards. A `Use` says which numbers are summed together there. No array of the model itself
is needed, so a mistake elsewhere in the model changes nothing.

A form of a tensor is right if the port sums the same numbers together as PyTorch does. A square matrix that PyTorch
multiplies as `F.linear(x, w)` and the port as `x @ w` is transposed, whatever both call it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# The tensors of which a factor is made, and those from which the other factor is computed.
Factor = tuple[frozenset[int], frozenset[int]]

MOVED = -1.0  # stands for a number that is not followed
EXPERTS = 64  # products of one operation that are told apart
LEAST = 2  # numbers that two uses have in common: one number says nothing


@dataclass(frozen=True, eq=False)
class Use:
    """A sum of products with numbers of a tensor.

    Attributes:
        numbers: the identities of the numbers, ascending.
        summed, kept: for each number a label: numbers with one label stand at the same place of the axes that are
            summed, of the axes that are kept.
        places: the same for each axis of a convolution's kernel.
        direct: whether the numbers themselves are multiplied, or what was computed from each of them.
        behind: the followed tensors from which the other factor is computed, by their numbers.
    """

    numbers: np.ndarray
    summed: np.ndarray
    kept: np.ndarray
    places: tuple[np.ndarray, ...] = ()
    direct: bool = True
    behind: frozenset[int] = frozenset()

    def alike(self, other: Use, common: np.ndarray) -> bool:
        """Whether another use sums the same ones of some numbers together."""
        mine, theirs = (np.searchsorted(use.numbers, common) for use in (self, other))
        if any(_partition(a[mine]) != _partition(b[theirs]) for a, b in self._labels(other)):
            return False
        # One model may have exchanged height and width, and a product of matrices has neither.
        places = ({_partition(a[at]) for a in use.places} for use, at in ((self, mine), (other, theirs)))
        first, second = (some - {bytes(8 * len(common))} for some in places)
        return first == second

    def _labels(self, other: Use) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        return (self.summed, other.summed), (self.kept, other.kept)


def _partition(labels: np.ndarray) -> bytes:
    """Return which numbers have the same label: labels counted in the order of their first number."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64).tobytes()


def uses(
    numbers: np.ndarray,
    summed: Sequence[int],
    each: Sequence[int] = (),
    places: Sequence[int] = (),
    direct: bool = True,
    behind: frozenset[int] = frozenset(),
) -> Iterator[Use]:
    """Yield the uses of an array of identities; `MOVED` stands for other numbers.

    Args:
        summed: the axes that are summed.
        each: the axes along which every part has a product of its own.
        places: the axes of a convolution's kernel.
        direct, behind: as in `Use`.
    """
    summed = [axis % numbers.ndim for axis in summed]
    sizes = [numbers.shape[axis] for axis in each]
    every = itertools.product(*map(range, sizes)) if np.prod(sizes, dtype=int) <= EXPERTS else [()]
    for part in every:
        where = dict(zip(each, part, strict=False))
        some = numbers[tuple(slice(where[i], where[i] + 1) if i in where else slice(None) for i in range(numbers.ndim))]
        found, first = np.unique(some, return_index=True)
        known = found >= 0
        if known.sum() >= LEAST:
            at = np.unravel_index(first[known], some.shape)
            kept = [i for i in range(some.ndim) if i not in (*summed, *places)]
            labels = [_label(at, some.shape, axes) for axes in (summed, kept, *((axis,) for axis in places))]
            yield Use(found[known], labels[0], labels[1], tuple(labels[2:]), direct, behind)


def _label(at: Sequence[np.ndarray], shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Return one number for the places along several axes."""
    label = np.zeros(len(at[0]), np.int64)
    for axis in axes:
        label = label * shape[axis] + at[axis]
    return label


def agreeing(torch: Iterable[Use], flax: Iterable[Use]) -> tuple[int, int, int]:
    """Return how many numbers both models sum with the same others.

    First those that are multiplied themselves are counted, then all of them, then those whose other factor is computed
    from the same tensors. A number counts once for each two uses of it.
    """
    direct = whole = ordered = 0
    theirs = [*flax]
    for mine in torch:
        for other in theirs:
            if mine.numbers[-1] < other.numbers[0] or other.numbers[-1] < mine.numbers[0]:
                continue
            common = np.intersect1d(mine.numbers, other.numbers, assume_unique=True)
            if len(common) >= LEAST and mine.alike(other, common):
                whole += len(common)
                direct += len(common) if mine.direct and other.direct else 0
                ordered += len(common) if mine.behind == other.behind else 0
    return direct, whole, ordered


def repeated(numbers: np.ndarray) -> np.ndarray:
    """Return the array with each axis along which nothing changes cut to its first place."""
    for axis, size in enumerate(numbers.shape):
        first = numbers.take([0], axis)
        if size > 1 and bool((numbers == first).all()):
            numbers = first
    return numbers


def richest(some: Sequence[T], array: Callable[[T], np.ndarray]) -> T | None:
    """Return the one with the most different identities; None where two have as many."""
    if len(some) < 2:
        return some[0] if some else None
    sizes = [len(np.unique(array(one))) for one in some]
    return some[sizes.index(max(sizes))] if sizes.count(max(sizes)) == 1 else None


def dependences(factors: Iterable[Factor]) -> dict[int, frozenset[frozenset[int]]]:
    """Return for each tensor what it is multiplied with: the tensors from which each other factor is computed."""
    found: dict[int, set[frozenset[int]]] = defaultdict(set)
    for own, others in factors:
        for i in own:
            found[i].add(others - own)
    return {i: frozenset(some) for i, some in found.items()}
