"""Places where models fix a type in their own code: the check lifts them while float64 decides, and reports them.

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
        layer: the layer with this code, by its name in its model, or by its class; empty if no layer is known.
        operation: the function, or JAX's primitive.
        dtype: the type that it fixes.
        place: file and line, `llama.py:70`.
        kind: `cast`; `table` if an array was made in that type, so that its rounding stays; `recomputed` if its formula
            is known, so that it was computed again in float64; `kept` if the computation stays in that type.
    """

    side: str
    layer: str
    operation: str
    dtype: str
    place: str
    kind: str = CAST


@dataclass
class Pins:
    """The pins of one side, gathered while it runs. Pins in the same line count once."""

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
            name_of: gives the name of a layer from the `self` of a frame; None if it is not a layer.
            place: file and line, if they are already known.
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
    """Return the package whose code a frame runs, by its module's name, because a folder may have a library's name."""
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
