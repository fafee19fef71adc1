"""What a subject is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.subjects.settings import Setting
from ports.family import Description

Numbers = dict[str, np.ndarray]


@dataclass(frozen=True)
class SubjectCase:
    """A setting, and what a subject must give in it; `place` is the folder that it was read from."""

    setting: Setting
    expected: Numbers
    bounds: dict[str, float]
    place: Path


@dataclass(frozen=True)
class NetworkCase(SubjectCase):
    """The case of a named network: its description, its weights in the torch form, and its inputs.

    `images` are the input sets, also if the network takes no images.
    """

    spec: Description
    weights: Numbers
    images: np.ndarray
    labels: np.ndarray
