"""What a subject is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.settings import Setting

Numbers = dict[str, np.ndarray]


@dataclass(frozen=True)
class SubjectCase:
    """What a subject is built from; `place` is the folder that it was read from.

    `images` are the input sets, of networks that take something else too.
    """

    setting: Setting
    spec: Any
    weights: Numbers
    images: np.ndarray
    labels: np.ndarray
    expected: Numbers
    bounds: dict[str, float]
    place: Path
