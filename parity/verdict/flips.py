"""ReLUs that are on in one run of a network and off in another.

A ReLU whose input lies within rounding of zero may be on in float64 and off in float32. Its gradient is then nonzero in
one and zero in the other, however precise the rest is. That is why gradients in float32 are farther off than their
rounding explains.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend
import numpy as np
from torch.overrides import TorchFunctionMode

from parity.numerics.layouts import layout_of, to_reference

RELU: Any = jax.nn.relu  # flax.nnx.relu and flax.linen.relu are this object


class InPyTorch(TorchFunctionMode):
    """Records which units are on at every ReLU, in the order of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.on: list[np.ndarray] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("relu", "relu_"):
            x = args[0] if args else kwargs["input"]
            self.on.append((x.detach() > 0).cpu().numpy())
        return func(*args, **kwargs)


@dataclass
class InJax:
    """Which units are on at every ReLU that was called, as values of the trace.

    Attributes:
        lost: whether a ReLU was called inside a transformation of the network's own (`scan`, `remat`), which its input
            cannot leave.
    """

    on: list[Any] = field(default_factory=list)
    lost: bool = False


@contextmanager
def in_jax() -> Iterator[InJax]:
    """Listen at `jax.nn.relu`, under any imported name: it is one object, and this intercepts calls of its class.

    Other threads share the class. Their calls pass by.
    """
    found, start, running, thread = InJax(), _trace(), [], threading.get_ident()
    original: Callable[..., Any] = jax.custom_jvp.__call__

    def call(self: Any, *args: Any, **kw: Any) -> Any:
        # The derivative of `relu` calls `relu` again.
        if self is not RELU or running or threading.get_ident() != thread:
            return original(self, *args, **kw)
        if _trace() != start:
            found.lost = True
            return original(self, *args, **kw)
        found.on.append((args[0] if args else kw["x"]) > 0)
        running.append(self)
        try:
            return original(self, *args, **kw)
        finally:
            running.pop()

    jax.custom_jvp.__call__ = call
    try:
        yield found
    finally:
        jax.custom_jvp.__call__ = original


def count(reference: Sequence[Any], other: Sequence[Any] | None) -> tuple[int | None, int]:
    """How many units are on in one and off in the other, and the number of all units; None if the calls differ."""
    units = sum(on.size for on in reference)
    if other is None or len(other) != len(reference):
        return None, units
    flips = 0
    for ours, theirs in zip(reference, other, strict=True):
        layout = layout_of(np.asarray(theirs), ours)
        if layout is None:
            return None, units
        flips += int((to_reference(np.asarray(theirs), layout) != ours).sum())
    return flips, units


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="nnx")
