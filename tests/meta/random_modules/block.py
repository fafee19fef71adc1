"""The record of a kind of block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx

from .choices import Choices

ANY = frozenset({"vector", "sequence", "image"})
SEQUENCE, IMAGE, VECTOR = frozenset({"sequence"}), frozenset({"image"}), frozenset({"vector"})


@dataclass(frozen=True)
class Block:
    """One kind of block.

    Attributes:
        torch, nnx: make a module that takes x.
        linen: (choices, name, x, train) to the output; called in a module's compact method.
        kinds: what may flow into it.
        reshapes: whether its output has another size, so that no residual fits around it.
        whole_length: whether it must know the length of a sequence.
    """

    torch: Callable[[Choices], Any]
    nnx: Callable[[Choices, nnx.Rngs], Any] | None
    linen: Callable[..., Any]
    kinds: frozenset[str] = ANY
    reshapes: bool = False
    whole_length: bool = False

    def fits(self, kind: str, length: int, port: str) -> bool:
        """Return whether a port has this block for what flows here."""
        return kind in self.kinds and (length > 0 or not self.whole_length) and getattr(self, port) is not None


def in_linen(module: Any) -> Callable[..., Any]:
    """Return the builder of a Linen module that has `s` and takes (x, train)."""
    return lambda s, name, x, train: module(s, name=name)(x, train)
