"""Tensors whose bytes are a range of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ports.weights.files.source import OpenFile
from ports.weights.form.lazy import Lazy


class Stored(Lazy):
    """A tensor whose bytes are a range of a file."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, file: OpenFile, at: int) -> None:
        super().__init__(shape, dtype, self._read)
        self._file, self._at = file, at

    def _read(self) -> np.ndarray:
        content = self._file.read(self._at, self.nbytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[Any]:
        return self._file.pieces(self._at, self._at + self.nbytes)
