"""What a check is about: a reference, its ports, and what they are fed and trained with."""

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
    """A port that is held against the reference. It is built when its turn comes, for it takes memory.

    Attributes:
        build: gives the network in float64.
        in_type: gives it in a working precision; from the type and weights in the torch form.
        with_blocks: gives it in float64, with some of the subject's blocks recorded too.
    """

    build: Callable[[], Functional]
    in_type: Callable[[str, Mapping[str, np.ndarray]], Functional]
    with_blocks: Callable[[Collection[str]], Functional] | None = None


@dataclass(frozen=True)
class Subject:
    """A reference and its ports, ready to be run.

    Attributes:
        title: what the report calls it.
        reference: in float64.
        candidates: by port, `nnx` or `linen`.
        probe: what both are fed.
        training: what both are trained with.
        seed: of the perturbations that measure the rounding response.
        names: the modules that are recorded, by PyTorch's names; by default all but Sequentials that have parameters.
        blocks: modules around them that the ports have too, where a mistake may be looked for.
        note: what the report says of it.
        advice: what a port does otherwise without being wrong.
        unexercised: what the inputs do not reach.
        types: of the reference's tensors, as they were given, by name, where its types are a policy of its own: one at
            least is narrower than float32. Empty where it is cast as a whole.
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
