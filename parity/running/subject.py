"""The subject of a check: a reference, its ports, their inputs and their training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from parity.numerics.quantities import Probe, Training
from parity.running.flax import Functional

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A port that is compared with the reference. It is built when its turn comes, because it takes memory.

    Attributes:
        build: gives the network in float64.
        in_type: gives it in a working precision, from the type and weights in the torch form.
        with_blocks: gives it in float64, and also records some of the subject's blocks.
    """

    build: Callable[[], Functional]
    in_type: Callable[[str, Mapping[str, np.ndarray]], Functional]
    with_blocks: Callable[[Collection[str]], Functional] | None = None


@dataclass(frozen=True)
class Subject:
    """A reference and its ports, ready to be run.

    Attributes:
        title: its name in the report.
        reference: in float64.
        candidates: by port, `nnx` or `linen`.
        probe: the inputs of both.
        training: the training of both.
        seed: of the perturbations that measure the rounding response.
        names: the modules that are recorded, by PyTorch's names; by default all but Sequentials that have parameters.
        blocks: modules around them that the ports also have, in which the diagnosis may look for a mistake.
        note: what the report says about it.
        advice: what a port does differently without being wrong.
        unexercised: what the inputs do not reach.
        types: the original types of the reference's tensors, by name, if at least one is narrower than float32, so that
            the types are the model's own policy. Empty if the model is cast as a whole.
        tables: the reference's buffers that were rounded to float32, whose formula is unknown.
    """

    title: str
    reference: nn.Module
    candidates: Mapping[str, Candidate]
    probe: Probe
    training: Training
    seed: int = 0
    names: Collection[str] | None = None
    blocks: Collection[str] = ()
    note: str = ""
    advice: tuple[str, ...] = ()
    unexercised: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
