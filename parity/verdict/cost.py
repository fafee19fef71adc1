"""Measures what all mistakes of a port together do to the model, in float64, from the tensors of the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from parity.numerics import bounds
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Observation
from parity.reports.report import Cost

# Axes of an output that may be logits: of more, the last axis is a side of an image.
LOGITS_AXES = (1, 2, 3)


class CostMeter:
    """Measures the quantities of a port as they pass through.

    Args:
        reference: what PyTorch gave.
    """

    def __init__(self, port: str, reference: Observation) -> None:
        self.reference, self.cost = reference, Cost(port)

    def passing(self, stream: Iterable[tuple[str, Tensors]]) -> Iterator[tuple[str, Tensors]]:
        """Yield the stream unchanged."""
        for quantity, tensors in stream:
            expected = self.reference[quantity]
            if quantity == "output.eval":
                self.cost = replace(self.cost, output=_relative(tensors, expected))
                self._of_logits(tensors, expected)
            elif quantity == "gradient.parameter":
                self.cost = replace(self.cost, cosine=_cosine(tensors, expected))
            elif quantity == "training.parameter":
                self._of_training(tensors, expected)
            yield quantity, tensors

    def _of_logits(self, got: Tensors, expected: Tensors) -> None:
        """Count the places where another class is the largest, and measure the KL divergence from the reference."""
        name = _logits(expected)
        if name is None or name not in got or not _fit(got[name], expected[name]):
            return
        ours, theirs = expected[name].reshape(-1, expected[name].shape[-1]), got[name].reshape(-1, got[name].shape[-1])
        flips = int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        logs, other = _log_softmax(ours), _log_softmax(theirs)
        divergence = float((np.exp(logs) * (logs - other)).sum(-1).mean()) if len(ours) else None
        self.cost = replace(self.cost, flips=flips, predictions=len(ours), divergence=divergence)

    def _of_training(self, got: Tensors, expected: Tensors) -> None:
        """Measure the drift of the update after the last step that is compared."""
        steps = {int(name.rpartition("@")[2]) for name in got}
        if len(steps) != 1:
            return
        (step,) = steps
        expected = {name: array for name, array in expected.items() if name.rpartition("@")[2] == str(step)}
        if self.cost.steps is None or step >= self.cost.steps:
            self.cost = replace(self.cost, drift=_relative(got, expected), steps=step)


def _fit(got: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two arrays have the same shape and only finite numbers."""
    return got.shape == expected.shape and bool(np.isfinite(got).all() and np.isfinite(expected).all())


def _comparable(got: Tensors, expected: Tensors) -> bool:
    return got.keys() == expected.keys() and all(_fit(got[name], array) for name, array in expected.items())


def _whole(sizes: Iterable[float]) -> float:
    return bounds.norm(np.array([*sizes]))


def _relative(got: Tensors, expected: Tensors) -> float | None:
    """Return ‖got − expected‖ / ‖expected‖ of all tensors together; None if that is not a number."""
    size = _whole(map(bounds.norm, expected.values()))
    if not size or not _comparable(got, expected):
        return None
    return _whole(bounds.distance(got[name], array) for name, array in expected.items()) / size


def _cosine(got: Tensors, expected: Tensors) -> float | None:
    """Return the cosine of the angle between all tensors together; None if one side is zero or not comparable."""
    sizes = [_whole(map(bounds.norm, tensors.values())) for tensors in (got, expected)]
    if not all(sizes) or not _comparable(got, expected):
        return None
    return float(sum(np.real(np.vdot(got[name] / sizes[0], array / sizes[1])) for name, array in expected.items()))


def _logits(outputs: Tensors) -> str | None:
    """Return the output that may be logits: the one with that name, or the only one."""
    floating = [name for name, array in outputs.items() if bounds.floating(array)]
    called = [name for name in floating if name.rpartition(".")[2] == "logits"] or floating
    if len(called) != 1:
        return None
    array = outputs[called[0]]
    return called[0] if array.ndim in LOGITS_AXES and array.shape[-1] >= 2 else None


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
