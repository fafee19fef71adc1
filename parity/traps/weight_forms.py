"""The effects of a wrong move on a tensor in PyTorch's layout, and relations between a port's tensor and PyTorch's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# One form, several, or None where the tensor cannot have the mistake.
Forms = np.ndarray | list[np.ndarray] | None


def transposed(w: np.ndarray) -> np.ndarray | None:
    return w.swapaxes(0, 1) if w.ndim > 1 else None


def flipped(w: np.ndarray) -> np.ndarray | None:
    return np.flip(w, tuple(range(2, w.ndim))) if w.ndim > 2 else None


def turned(w: np.ndarray) -> np.ndarray | None:
    return w.swapaxes(2, 3) if w.ndim == 4 else None


def reshaped(w: np.ndarray) -> np.ndarray | None:
    """An (out, in, *window) tensor that was reshaped to (*window, in, out) without moving axes."""
    if w.ndim < 2:
        return None
    moved = np.moveaxis(w, (0, 1), (-1, -2))
    return np.moveaxis(w.reshape(moved.shape), (-1, -2), (0, 1))


def through(dtype: Any) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda w: w.astype(np.float32).astype(dtype).astype(np.float64)


def gates_in_order(order: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray | None]:
    def plant(w: np.ndarray) -> np.ndarray | None:
        if len(w) % len(order):
            return None
        parts = np.split(w, len(order))
        return np.concatenate([parts[i] for i in order])

    return plant


def _divisors(n: int) -> Iterator[int]:
    return (d for d in range(2, n) if n % d == 0)


def forget_bias_added(w: np.ndarray) -> np.ndarray | None:
    """A forget gate whose bias is one more."""
    if w.ndim != 1 or len(w) % 4:
        return None
    return w + np.repeat([0.0, 1.0, 0.0, 0.0], len(w) // 4)


def thirds_in_another_order(w: np.ndarray) -> Forms:
    if len(w) % 3:
        return None
    return [np.concatenate(parts) for parts in itertools.permutations(np.split(w, 3))][1:]


def heads_interleaved(w: np.ndarray) -> Forms:
    """The features of a head far apart; PyTorch has them next to each other."""

    def split(part: np.ndarray, heads: int) -> np.ndarray:
        return part.reshape(-1, heads, *part.shape[1:]).swapaxes(0, 1).reshape(part.shape)

    width = w.shape[-1] if w.ndim > 1 else len(w) // 3
    parts = np.split(w, max(1, len(w) // max(width, 1)))
    return [np.concatenate([split(p, heads) for p in parts]) for heads in _divisors(len(parts[0]))]


def groups_shuffled(w: np.ndarray) -> Forms:
    return [w.reshape(g, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape) for g in _divisors(len(w))]


def as_deviation(w: np.ndarray) -> Forms:
    return [np.sqrt(w), 1 / np.sqrt(w + 1e-5)] if (w > 0).all() else None


def is_scaled(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """A factor other than one and zero."""
    at = int(np.argmax(np.abs(mine)))
    factor = float(theirs.flat[at] / mine.flat[at]) if mine.size > 1 and mine.flat[at] else 0.0
    return factor != 0 and abs(factor - 1) > 1e-3 and np.allclose(factor * mine, theirs, rtol=1e-6, atol=0)


def is_permuted(axis: int) -> Callable[[np.ndarray, np.ndarray], bool]:
    """The same slices in another order."""

    def slices(w: np.ndarray) -> list[bytes]:
        return sorted(np.ascontiguousarray(part).tobytes() for part in np.moveaxis(w, axis, 0))

    return lambda mine, theirs: mine.ndim > axis and np.ptp(mine) > 0 and slices(mine) == slices(theirs)


def differs_in_one_row(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """One row of zeros that the port does not have."""
    rows = [i for i in range(len(mine)) if not np.array_equal(mine[i], theirs[i])]
    return len(rows) == 1 and not mine[rows[0]].any()
