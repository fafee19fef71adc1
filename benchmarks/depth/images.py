"""The images of CIFAR-10 (Krizhevsky 2009): from arrays in .npz files, or from its binary version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ports.errors import UserError

MEAN = np.array([0.485, 0.456, 0.406])  # as most published networks for CIFAR-10 are fed
STD = np.array([0.229, 0.224, 0.225])
SIDE, CLASSES = 32, 10
EXPECTED = "a folder with cifar10_train*.npz and cifar10_test*.npz, or data_batch_*.bin and test_batch.bin"


@dataclass(frozen=True)
class LabelledImages:
    """Normalised images (count, 3, height, width) in float64, and their labels (count,) in int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def _arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read `images` (count, 32, 32, 3) and `labels` (count,), bytes both."""
    with np.load(file, allow_pickle=False) as held:
        return held["images"], held["labels"]


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of a label and the red, green and blue values of an image, a byte each."""
    rows = np.fromfile(file, np.uint8).reshape(-1, 1 + 3 * SIDE**2)
    return rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), rows[:, 0]


# The files of a split by the pattern of their names, and what reads one.
FORMS: dict[str, tuple[tuple[str, Callable[[Path], tuple[np.ndarray, np.ndarray]]], ...]] = {
    "train": (("cifar10_train*.npz", _arrays), ("data_batch_*.bin", _binary)),
    "test": (("cifar10_test*.npz", _arrays), ("test_batch.bin", _binary)),
}


def load(folder: Path, split: str, size: int) -> LabelledImages:
    """Read the images of a split, `train` or `test`.

    Args:
        size: the images are averaged to this height and width; a divisor of 32.

    Raises:
        UserError: no such files there, a file that holds something else, or a size that does not divide 32.
    """
    if SIDE % size:
        raise UserError(f"--image-size: got {size}, expected a divisor of {SIDE}")
    files = [(file, read) for pattern, read in FORMS[split] for file in sorted(folder.glob(pattern))]
    if not files:
        raise UserError(f"--data {folder}: no {split} images of CIFAR-10; expected {EXPECTED}")
    parts = [_read(file, read) for file, read in files]
    images = np.concatenate([pixels for pixels, _ in parts])
    step = SIDE // size
    mean = images.reshape(-1, size, step, size, step, 3).mean((2, 4), dtype=np.float64)
    normalised = (mean / 255 - MEAN) / STD
    return LabelledImages(
        np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)),
        np.concatenate([labels for _, labels in parts]).astype(np.int64),
    )


def _read(file: Path, read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = read(file)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--data {file}: cannot be read as images of CIFAR-10 ({error}); expected {EXPECTED}") from None
    if images.dtype != np.uint8 or images.shape != (len(labels), SIDE, SIDE, 3) or labels.max(initial=0) >= CLASSES:
        got = f"images {images.dtype} {images.shape}, labels {labels.shape} up to {labels.max(initial=0)}"
        raise UserError(f"--data {file}: got {got}, expected uint8 (count, {SIDE}, {SIDE}, 3) and labels below 10")
    return images, labels


def batches(count: int, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the indices of the images of each step: all images in a drawn order, and again in another one."""
    rng, order = np.random.default_rng(seed), np.zeros(0, np.int64)
    for _ in range(steps):
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(count)])
        taken, order = order[:batch], order[batch:]
        yield taken
