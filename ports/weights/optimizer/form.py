"""The torch form of an optimizer's state, and the one number of steps in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ports.weights.form.torch_form import WeightsError
from ports.weights.optimizer.table import STEP, whole_number

Tensors = dict[str, dict[str, np.ndarray]]


class OptimizerState(dict[str, np.ndarray]):
    """The torch form.

    Attributes:
        stateless: the network's parameters that never got a gradient, for which the state has no tensors.
    """

    stateless: frozenset[str] = frozenset()


def agreed(counts: Mapping[int, str], steps: int | None, has_tensors: bool, keeper: str) -> int:
    """The one number of steps.

    Args:
        counts: the numbers found, each with one of its places.
        steps: the caller's number.

    Raises:
        WeightsError: several numbers, or no number for a state that has tensors.
    """
    if len(counts) > 1:
        got = ", ".join(f"{place}: {count}" for count, place in counts.items())
        raise WeightsError(f"{STEP}: got {got}; expected one number of steps: optax keeps one for all parameters")
    if steps is not None and counts and steps not in counts:
        raise WeightsError(f"{STEP}: got steps={steps}, the optimizer has done {next(iter(counts))}")
    known = next(iter(counts), None if steps is None else whole_number(steps, "steps"))
    if known is None and has_tensors:
        raise WeightsError(f"{STEP}: {keeper} does not count its steps; give steps=, the number done")
    return known or 0
