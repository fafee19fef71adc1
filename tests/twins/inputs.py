"""What the twins are called with: arrays by keyword, the same in every run."""

from __future__ import annotations

import numpy as np

WORDS, LENGTH, TARGET, BATCH = 90, 10, 7, 2


def ids(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Words without the special ones, which are below 5."""
    return np.random.default_rng(seed).integers(5, WORDS, (BATCH, length))


def mask(length: int = LENGTH, padded: int = 0) -> np.ndarray:
    """One where there is a word; the last row ends in padding."""
    result = np.ones((BATCH, length), np.int64)
    result[-1, length - padded :] = 0
    return result


def positions(length: int = LENGTH, first: int = 0) -> np.ndarray:
    return np.broadcast_to(np.arange(first, first + length), (BATCH, length)).copy()


def pixels(size: int = 32, channels: int = 3, name: str = "pixel_values") -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(1).standard_normal((BATCH, channels, size, size))}


def text(padded: int = 2) -> dict[str, np.ndarray]:
    return {"input_ids": ids(), "attention_mask": mask(padded=padded)}


def placed(first: int = 0, padded: int = 2) -> dict[str, np.ndarray]:
    return {**text(padded), "position_ids": positions(first=first)}


def typed(padded: int = 2) -> dict[str, np.ndarray]:
    return {**text(padded), "token_type_ids": mask(padded=5)}


def translated(padded: int = 2) -> dict[str, np.ndarray]:
    """A source and a target."""
    return {
        **text(padded),
        "decoder_input_ids": ids(TARGET, seed=2),
        "decoder_attention_mask": mask(TARGET, padded=padded),
    }
