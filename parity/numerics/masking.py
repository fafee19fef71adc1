"""The positions of sequences that count: all other positions are padding, and are not compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.numerics.layouts import LAYOUTS, axes, to_flax
from ports.errors import UserError


def positions(mask: Any) -> np.ndarray:
    """Return a mask as booleans (batch, length), true where a position counts.

    Raises:
        UserError: not two axes, not booleans (or zeros and ones), no position that counts.
    """
    try:
        array = np.asarray(mask)
    except (TypeError, ValueError) as error:
        raise UserError(f"mask: got {type(mask).__name__}, expected an array of booleans (batch, length)") from error
    if array.ndim != 2:
        raise UserError(f"mask: got the shape {array.shape}, expected (batch, length)")
    if array.dtype != np.bool_ and not (array.dtype.kind in "iu" and np.isin(array, (0, 1)).all()):
        raise UserError(f"mask: got an array of {array.dtype}, expected booleans: true where a position counts")
    if not array.any():
        raise UserError("mask: got no position that counts, expected one at least")
    return array.astype(np.bool_)


def covers(mask: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether an array of this shape begins with the axes of the mask."""
    return tuple(shape[:2]) == mask.shape


def broadcast(mask: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the mask with additional axes of length one at the end."""
    return mask.reshape(*mask.shape, *(1,) * (dimensions - 2))


def counted(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return an array with zeros at the positions that do not count, if it has positions."""
    if mask is None or not covers(mask, array.shape):
        return array
    return np.where(broadcast(mask, array.ndim), array, np.zeros((), array.dtype))


def in_layout(mask: np.ndarray, ours: tuple[int, ...], theirs: tuple[int, ...]) -> np.ndarray:
    """Return the mask for a Flax array.

    Args:
        ours, theirs: the shapes of PyTorch's array and of Flax's.
    """
    whole = broadcast(mask, len(ours))
    for layout in ("same", *LAYOUTS):
        if len(ours) == len(theirs) and tuple(ours[i] for i in axes(layout, len(ours))) == tuple(theirs):
            return to_flax(whole, layout)
    return whole


def masks(mask: np.ndarray | None, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """Return a mask for each of Flax's outputs whose counterpart has positions, by its name.

    Args:
        ours, theirs: the outputs of PyTorch and of Flax, or their shapes.
        names: PyTorch's names by Flax's.

    Raises:
        UserError: no output of PyTorch's begins with the mask's axes.
    """
    if mask is None:
        return {}
    found = {
        name: in_layout(mask, tuple(ours[own].shape), tuple(theirs[name].shape))
        for name, own in names.items()
        if covers(mask, tuple(ours[own].shape))
    }
    if not found:
        said = ", ".join(f"{name} {tuple(array.shape)}" for name, array in ours.items())
        raise UserError(f"mask: got {mask.shape}, expected the first two axes of an output; PyTorch gives {said}")
    return found
