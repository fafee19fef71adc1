"""Tables that models compute in float32 when they are built, and that follow from a formula.

Rotary embeddings and sinusoidal positions are made of frequencies that fall geometrically: base^(-i/n). A model holds
them, or sines and cosines of them, rounded to float32, and the other framework rounds otherwise. If an array is such a
table, up to float32's rounding, it is computed again in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Float32's rounding, relative; a formula of a few operations is off by a few of them.
UNIT = float(np.finfo(np.float32).eps)
UNITS = 4
FEW = 4  # numbers; a shorter array counts as a table only if it holds frequencies that begin with 1

# The bases to try for tables of sines and cosines; a table of frequencies shows its base itself.
BASES = (10000.0, 500000.0, 1000000.0, 100000.0, 100.0, 1000.0, 5000000.0, 8000000.0, 10000000.0)


def recomputed(table: np.ndarray) -> np.ndarray | None:
    """Return a float32 table in float64, computed by its formula; None if no formula is known.

    Args:
        table: (n,) frequencies, or (positions, ..., columns) of sines and cosines.
    """
    if table.size < 2 or not np.isfinite(table).all():
        return None
    wide = table.astype(np.float64)
    squeezed = wide.reshape([n for n in wide.shape if n > 1] or [1])
    if table.size < FEW and not (squeezed.ndim == 1 and squeezed[0] == 1):
        return None
    if squeezed.ndim == 1:
        found = _frequencies(squeezed)
    elif squeezed.ndim == 2:
        found = _waves(squeezed)
    else:
        found = None
    return None if found is None else found.reshape(table.shape)


def _short(value: float) -> float:
    """Return a number with four digits, as people write it into a configuration."""
    return float(f"{value:.3e}")


def _frequencies(wide: np.ndarray) -> np.ndarray | None:
    """Return base^(-i/n) for i from 0, times one number, if the table holds that."""
    count = len(wide)
    if wide[0] <= 0 or wide[-1] <= 0 or wide[0] == wide[-1]:
        return None
    starts = {_short(wide[0]), 1 / _short(1 / wide[0])}
    for span in (count, count - 1):
        base = _short((wide[0] / wide[-1]) ** (span / (count - 1)))
        for start in starts:
            exact = start * base ** (-np.arange(count) / span)
            if base > 1 and (np.abs(exact - wide) <= UNITS * UNIT * exact).all():
                return exact
    return None


def _waves(wide: np.ndarray) -> np.ndarray | None:
    """Return sines and cosines of position times frequency, if the table holds them.

    The first row shows which columns are sines (0) and which are cosines (1); the next row shows the frequency of each.
    A later row of zeros is the position of padding, which some models clear.
    """
    sines, cosines = wide[0] == 0, wide[0] == 1
    positions, columns = wide.shape
    padding = np.r_[False, ~wide[1:].any(axis=1)]
    if padding[1:].all() or not (sines | cosines).all() or not sines.any():
        return None
    told = 1 + int(np.argmin(padding[1:]))
    at = np.arange(positions)[:, None]
    for frequencies in _candidates(columns):
        waves = np.where(sines[:, None], np.sin(told * frequencies), np.cos(told * frequencies))
        nearest = np.argmin(np.abs(waves - wide[told][:, None]), axis=1)
        nearest = np.where(cosines, _partners(nearest, sines, cosines), nearest)
        angles = at * frequencies[nearest]
        exact = np.where(sines, np.sin(angles), np.cos(angles))
        exact[padding] = 0
        if (np.abs(exact - wide) <= UNITS * UNIT * (1 + angles)).all():
            return exact
    return None


def _partners(nearest: np.ndarray, sines: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return the frequencies of the cosines: those of the sines in order, if there are as many.

    Cosines of small angles are all 1 in float32, and do not show their frequencies.
    """
    if sines.sum() != cosines.sum():
        return nearest
    partners = nearest.copy()
    partners[cosines] = nearest[sines]
    return partners


def _candidates(columns: int) -> Iterator[np.ndarray]:
    """Yield the frequencies that sines and cosines in this many columns may have."""
    for count in dict.fromkeys((columns // 2, columns // 4, columns)):
        if count < 1:
            continue
        for base in BASES:
            yield base ** (-np.arange(count) / count)
            if count > 1:
                yield base ** (-np.arange(count) / (count - 1))
