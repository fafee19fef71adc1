"""Inputs of the replayed bugs."""

from __future__ import annotations

import numpy as np


def tokens(vocabulary: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random tokens; by default two sequences of ten."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape or (2, 10))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape)


def padding(length: int, *counts: int) -> np.ndarray:
    """Return a mask (batch, length): true at the first `counts[i]` positions of sequence i."""
    return np.arange(length) < np.array(counts)[:, None]
