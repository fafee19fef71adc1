"""Where models fix a type in their own code: these places are lifted while float64 decides, and reported.

A model pins a type with a cast (`x.float()`, `x.astype(jnp.float32)`), a type of a result
(`softmax(dtype=torch.float32)`), or an array that it made in that type (a table of positions).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

# Packages that wrap functions to check their annotations.
CHECKERS = ("beartype", "jaxtyping")

# Packages whose frames are not the model's own code.
LIBRARIES = ("torch", "jax", "jaxlib", "flax", "optax", "numpy", "parity", "contextlib", "functools", *CHECKERS)

CAST = "cast"
TABLE = "table"
RECOMPUTED = "recomputed"
KEPT = "kept"


@dataclass(frozen=True, order=True)
class Pin:
    """One place that fixes a type.

    Attributes:
        side: `pytorch`, `nnx` or `linen`.
        layer: whose code it is, by its name in its model, or by its class; empty where no layer is known.
        operation: the function, or JAX's primitive.
        dtype: the type that it fixes.
        place: file and line, `llama.py:70`.
        kind: `cast`; `table` where an array was made in that type, so that its rounding stays; `recomputed` where its
            formula is known, so that it was made again in float64; `kept` where the computation stays in that type.
    """

    side: str
    layer: str
    operation: str
    dtype: str
    place: str
    kind: str = CAST


@dataclass
class Pins:
    """The pins of one side, gathered while it runs. What stands in one line is told once."""

    side: str
    found: dict[tuple[str, str, str], Pin] = field(default_factory=dict)

    def note(
        self,
        operation: str,
        dtype: object,
        name_of: Callable[[object], str | None] = lambda _: None,
        kind: str = CAST,
        place: str | None = None,
    ) -> None:
        """Note a pin of the code that runs now.

        Args:
            name_of: the name of a layer, from the `self` of a frame; None where it is no layer.
            place: file and line, where they are known otherwise.
        """
        frame = None if place else own_frame()
        at = place or (f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "")
        key = (at, operation, kind)
        if key not in self.found:
            layer = _layer(frame, name_of) or ""
            self.found[key] = Pin(self.side, layer, operation, str(dtype).removeprefix("torch."), at, kind)

    def __iter__(self) -> Iterator[Pin]:
        return iter(self.found.values())


def own_frame() -> FrameType | None:
    """Return the innermost frame that belongs to no library."""
    frame = sys._getframe(1)
    while frame is not None and package_of(frame) in LIBRARIES:
        frame = frame.f_back
    return frame


def package_of(frame: FrameType) -> str:
    """Return the package whose code a frame runs, by its module's name: a folder may be called like a library."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _layer(frame: FrameType | None, name_of: Callable[[object], str | None]) -> str | None:
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and (name := name_of(owner)):
            return name
        frame = frame.f_back
    return None


def listed(pins: Collection[Pin]) -> list[Pin]:
    """Return the pins in the order in which a reader looks for them: by side, kind and place."""
    return sorted(pins, key=lambda pin: (pin.side != "pytorch", pin.side, pin.kind, pin.place))
