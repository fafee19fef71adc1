"""JSON in files of weights: counted before it is decoded, without repeated keys, never nested without end."""

from __future__ import annotations

import json
from typing import Any

from ports.weights.budget import JSON, Budget
from ports.weights.formats import unique


def table(text: bytes | bytearray, budget: Budget, what: str) -> dict[str, Any]:
    """Return the object that a text holds.

    Raises:
        ValueError: it is not an object in JSON, or is nested too deeply.
        WeightsError: it takes more memory than the file may take.
    """
    budget.take(JSON * len(text), what)
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what} is a {type(content).__name__}, expected an object")
    return content
