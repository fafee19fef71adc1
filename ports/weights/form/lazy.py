"""Tensors that stay in their file until their numbers are needed, so that files of any size can be converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np


class Lazy:
    """A tensor's shape and type, and where its numbers come from. `numpy.asarray` reads them again each time."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, load: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._load = shape, dtype, load

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the numbers of a tensor in a file are always a copy")
        array = self._load()
        return array if dtype is None else array.astype(dtype, copy=False)

    def pieces(self) -> Iterator[Any]:
        """Return its bytes in C order."""
        yield _bytes(self._load())


Array = np.ndarray | Lazy


def is_array(value: object) -> bool:
    """Return whether a leaf of a file's content is a tensor."""
    return isinstance(value, np.ndarray | Lazy)


def pieces(array: Array) -> Iterator[Any]:
    """Return a tensor's bytes, little-endian and in C order; a large one in a file comes in several pieces."""
    return array.pieces() if isinstance(array, Lazy) else iter((_bytes(array),))


def mapped(function: Callable[[tuple[Any, ...]], Sequence[np.ndarray]], arrays: Sequence[Array]) -> list[Array]:
    """Return the arrays that a function makes from others; for tensors in a file it runs when its results are needed.

    The function may only look at shapes and types: its results for tensors without numbers show the shapes and types in
    advance.
    """
    if not any(isinstance(array, Lazy) for array in arrays):
        return list(function(tuple(arrays)))
    blank = tuple(np.broadcast_to(np.zeros((), array.dtype), array.shape) for array in arrays)
    given = {id(one): array for one, array in zip(blank, arrays, strict=True)}

    def load(i: int) -> np.ndarray:
        return function(tuple(np.asarray(array) for array in arrays))[i]

    return [
        given[id(one)] if id(one) in given else Lazy(one.shape, one.dtype, partial(load, i))
        for i, one in enumerate(function(blank))
    ]


def _bytes(array: np.ndarray) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
