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
WHOLE = 1e6  # a larger whole number would be near the square of any number
SHORT = 2.0**10  # a multiple of its inverse is exact in float32, and was not rounded
FEW = 4  # numbers; a shorter array counts as a table only if it holds frequencies that begin with 1

# The bases to try for tables of sines and cosines; a table of frequencies shows its base itself.
BASES = (10000.0, 500000.0, 1000000.0, 100000.0, 100.0, 1000.0, 5000000.0, 8000000.0, 10000000.0)


def recomputed(table: np.ndarray) -> np.ndarray | None:
    """Return a float32 table in float64, computed by its formula; None if no formula is known.

    Args:
        table: (n,) frequencies, (positions, ..., columns) of sines and cosines, or one number.
    """
    if not table.ndim:
        return _number(float(table))
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


def _number(value: float) -> np.ndarray | None:
    """Return the square root of a whole number, its inverse, or a number of four digits, if float32 rounds it so."""
    if not np.isfinite(value) or value == 0:
        return None
    size = abs(value)
    roots = [_root(size), 1 / root if (root := _root(1 / size)) else 0.0]
    exact = (number for number in (*roots, _short(size)) if number)
    found = next((number for number in exact if np.float32(number) == np.float32(size)), None)
    return None if found is None else np.array(np.copysign(found, value))


def _root(value: float) -> float:
    """Return the root of the whole number that is nearest to the square of a number; 0 if that is large."""
    return round(value**2) ** 0.5 if value < WHOLE**0.5 else 0.0


def rounded(table: np.ndarray) -> bool:
    """Return whether an array has numbers that rounding to float32 may have changed: no mask, and no whole numbers."""
    scaled = table[np.isfinite(table)].astype(np.float64) * SHORT
    return bool((scaled != np.round(scaled)).any())


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
