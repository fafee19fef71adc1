"""Random inputs."""

from __future__ import annotations

import numpy as np

SEED = 0


def numbers(*shape: int) -> np.ndarray:
    """Return random float32 numbers."""
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def tokens(highest: int, *shape: int, seed: int = SEED) -> np.ndarray:
    """Return random tokens from 2 on, below `highest`."""
    return np.random.default_rng(seed).integers(2, highest, shape).astype(np.int32)
