"""A reference's tensors on disk: repeated comparisons read them from there, one tensor at a time.

Otherwise the activations of a deep network in two modes, its gradients and its states after several steps would take
memory, in addition to those of the running port.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import IO

import numpy as np

from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Observation

# A quantity that is smaller than this (bytes) stays in memory.
SMALL = 16 << 20


def spilled(run: Iterable[tuple[str, Tensors]]) -> Observation:
    """The quantities of a run; large ones are read-only maps of a file, which is deleted with the last map."""
    found: Observation = {}
    for quantity, tensors in run:
        found[quantity] = found.get(quantity, {}) | _on_disk(tensors)
    return found


def _on_disk(tensors: Tensors) -> Tensors:
    if sum(array.nbytes for array in tensors.values()) < SMALL:
        return tensors
    try:
        with tempfile.TemporaryFile(prefix="parity-") as file:
            return {name: _mapped(file, array) for name, array in tensors.items()}
    except OSError:  # the disk is full: keep the tensor in memory
        return tensors


def _mapped(file: IO[bytes], array: np.ndarray) -> np.ndarray:
    if not array.size or not array.ndim:
        return array
    offset = file.tell()
    np.ascontiguousarray(array).tofile(file)
    file.flush()
    return np.memmap(file, array.dtype, "r", offset, array.shape)
