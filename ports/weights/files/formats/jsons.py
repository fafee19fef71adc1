"""JSON in files of weights: counted before it is decoded, without repeated keys, never nested without end."""

from __future__ import annotations

import json
import re
from typing import Any

from ports.weights.files.budget import JSON, Budget
from ports.weights.files.formats import unique

DEEPEST = 100  # levels; Python's own limit is close to the size of the stack, where code fails in unpredictable ways
TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


def table(text: bytes | bytearray, budget: Budget, what: str) -> dict[str, Any]:
    """Return the object that a text holds.

    Raises:
        ValueError: it is not an object in JSON, or is nested too deeply.
        WeightsError: it takes more memory than the file may take.
    """
    budget.take(JSON * len(text), what)
    if _depth(text) > DEEPEST:
        raise ValueError(f"{what} is nested too deeply")
    content = json.loads(text, object_pairs_hook=unique)
    if not isinstance(content, dict):
        raise ValueError(f"{what} is a {type(content).__name__}, expected an object")
    return content


def _depth(text: bytes | bytearray) -> int:
    """Return how deeply objects and lists are nested, at most one more than `DEEPEST`."""
    now = most = 0
    for token in TOKENS.finditer(text):
        sign = token[0][0]
        now += (sign in b"[{") - (sign in b"]}")
        most = max(most, now)
        if most > DEEPEST:
            break
    return most
