"""Norms and distances take one product where that is exact enough, and the long way where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from parity.numerics import bounds

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5, 4))


def by_hand(array: np.ndarray) -> float:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return math.hypot(*(abs(complex(value)) for value in wide.ravel() if np.isfinite(value)))


ARRAYS: dict[str, np.ndarray] = {
    "of float64": X,
    "of float32": X.astype(np.float32),
    "of bfloat16": X.astype(ml_dtypes.bfloat16),
    "of integers": np.arange(-5, 7),
    "of truth values": X > 0,
    "complex": X + 1j * X[::-1],
    "transposed": X.transpose(2, 0, 1),
    "every other": X[:, ::2],
    "a scalar": np.array(-3.5),
    "empty": X[:0],
    "zeros": np.zeros((3, 4)),
    "tiny": X * 1e-200,
    "subnormal": X * 1e-310,
    "huge": X * 1e300,
    "with NaN": np.where(X > 1, np.nan, X),
    "with infinity": np.where(X > 1, np.inf, X),
    "with numbers near the largest": np.where(X > 1, np.finfo(np.float64).max / 4, X),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_norm_is_that_of_the_numbers_one_by_one(name: str) -> None:
    assert bounds.norm(ARRAYS[name]) == pytest.approx(by_hand(ARRAYS[name]), rel=1e-14)


@pytest.mark.parametrize("name", ARRAYS)
def test_the_units_are_those_that_numpy_tells(name: str) -> None:
    array = ARRAYS[name]
    if array.dtype.kind not in "fc":
        return
    parts = [np.real(array), np.imag(array)] if array.dtype.kind == "c" else [array]
    spacing = [np.spacing(np.abs(np.where(np.isfinite(part), part, 0))).astype(np.float64) for part in parts]
    assert bounds.ulps(array) == pytest.approx(math.hypot(*map(by_hand, spacing)), rel=1e-14)


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | None]] = {
    "nothing": (lambda x: x.copy(), 0.0),
    "one unit": (lambda x: np.nextafter(x, np.inf), None),
    "a number is NaN": (lambda x: np.where(x == x.max(), np.nan, x), np.inf),
    "a number is infinite": (lambda x: np.where(x == x.max(), np.inf, x), np.inf),
    "another shape": (lambda x: x[None], np.inf),
    "too far for float64": (lambda x: np.where(x == x.max(), -np.finfo(np.float64).max, x), None),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [name for name, array in ARRAYS.items() if array.dtype == np.float64 and array.size])
def test_the_distance_is_the_norm_of_the_difference(name: str, change: str) -> None:
    a = ARRAYS[name]
    made, expected = CHANGES[change]
    b = np.asarray(made(a))
    if change == "another shape":
        assert bounds.distance(b, a) == expected
        return
    unlike = np.isnan(a) != np.isnan(b)
    unlike |= ~np.isnan(a) & ~np.isnan(b) & (np.isinf(a) | np.isinf(b)) & (a != b)
    with np.errstate(all="ignore"):
        difference = np.where(np.isfinite(a) & np.isfinite(b), a - b, 0)
    want = np.inf if unlike.any() or not np.isfinite(difference).all() else by_hand(difference)
    assert bounds.distance(b, a) == pytest.approx(want, rel=1e-12, abs=0)


def test_differences_whose_squares_vanish_count() -> None:
    a = np.zeros(3)
    b = np.array([0.0, 3e-200, 4e-200])
    assert bounds.distance(b, a) == pytest.approx(5e-200, rel=1e-15)
