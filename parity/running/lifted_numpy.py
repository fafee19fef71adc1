"""Makes arrays that a model creates from numbers during tracing keep float64 if its code names float32.

Flax models make tables of positions with numpy: `np.sin(angles.astype("float32"))`. JAX only sees the finished array.
So functions that make arrays give arrays whose `astype` keeps float64, but only to the model's own code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from parity.numerics.pins import CHECKERS, LIBRARIES, Pins, package_of

NARROW = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)}

# The functions that make arrays of Python's numbers, and of numpy's.
MAKERS = {
    np: ("arange", "array", "asarray", "empty", "eye", "full", "geomspace", "linspace", "logspace", "ones", "zeros"),
    jnp: ("array", "asarray"),
}


def kept(dtype: Any) -> Any:
    """Return float64 in place of a narrower type."""
    try:
        return np.float64 if dtype is not None and np.dtype(dtype) in NARROW else dtype
    except TypeError:
        return dtype


class Wide(np.ndarray):
    """An array that stays float64."""

    pins: Pins | None = None

    def __array_finalize__(self, other: Any) -> None:
        self.pins = getattr(other, "pins", None)

    def astype(self, dtype: Any, *args: Any, **kw: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        wide = kept(dtype)
        if wide is not dtype and self.pins is not None:
            self.pins.note("astype", np.dtype(dtype))
        return super().astype(wide, *args, **kw)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        return marked(result, self.pins)


def marked(array: Any, pins: Pins | None) -> Any:
    """Return an array of numpy's that stays float64."""
    if type(array) is not np.ndarray or array.dtype.kind not in "iuf" or array.dtype in NARROW:
        return array
    new = array.view(Wide)
    new.pins = pins
    return new


def _caller(frame: FrameType | None) -> str:
    """Return the package of the innermost frame, without wrappers that check annotations."""
    while frame is not None and package_of(frame) in CHECKERS:
        frame = frame.f_back
    return "" if frame is None else package_of(frame)


@contextmanager
def numpy_lifted(pins: Pins) -> Iterator[None]:
    """Make arrays of this thread's own code stay float64."""
    thread = threading.get_ident()
    originals = {(module, name): getattr(module, name) for module, names in MAKERS.items() for name in names}

    def making(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kw: Any) -> Any:
            caller = _caller(sys._getframe(1))
            if threading.get_ident() != thread or caller in LIBRARIES or caller == "ports":
                return original(*args, **kw)
            wide = {key: kept(value) if key == "dtype" else value for key, value in kw.items()}
            places = [
                kept(value) if i and isinstance(value, type | np.dtype | str) else value for i, value in enumerate(args)
            ]
            if any(a is not b for a, b in zip((*places, *wide.values()), (*args, *kw.values()), strict=True)):
                pins.note(original.__name__, "float32")
            return marked(original(*places, **wide), pins)

        return make

    for (module, name), original in originals.items():
        setattr(module, name, making(original))
    try:
        yield
    finally:
        for (module, name), original in originals.items():
            setattr(module, name, original)
