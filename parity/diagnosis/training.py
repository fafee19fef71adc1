"""Name a known mistake of the training.

The experiment: a trap is planted in PyTorch's side of the training. Where the reference, trained so, ends where the
port ends, after one step, after three and after all, that is the mistake.
"""

from __future__ import annotations

import torch

from parity.diagnosis.search import search
from parity.numerics import bounds
from parity.numerics.bounds import Responses
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Probe, Training
from parity.running import pytorch as run_pytorch
from parity.traps.arguments import Mend, mended_training
from parity.traps.catalogue import TRAINING
from parity.traps.trap import Trap
from ports.errors import UserError
from ports.optimizers import CLASSES, class_of


def explain(
    reference: torch.nn.Module, fed: Probe, training: Training, got: Tensors, responses: Responses
) -> tuple[Trap, list[Mend]] | None:
    """Return the trap with which the reference's training ends where the port's does, and the arguments that mend it.

    None where no trap does that.

    Args:
        got: what the port's training added to every parameter, after the steps where that is beyond its bound; after
            the others it is what the reference's did.
    """
    theirs = responses.reference["training.parameter"] | got

    def differing(traps: tuple[Trap, ...]) -> set[str] | None:
        return _differing(traps, reference, fed, training, theirs, responses)

    loop = run_pytorch.Loop(run_pytorch.updated(reference, fed), training)
    name = class_of(loop.optimizer)
    fitting = [trap for trap in TRAINING if name is None or name in trap.names or not {*CLASSES} & {*trap.names}]
    for trap in search(fitting, differing):
        assert trap.plant is not None
        planted = run_pytorch.Loop(run_pytorch.updated(reference, fed), trap.plant(training))
        return trap, mended_training(trap, loop.optimizer, planted.optimizer)
    return None


def _differing(
    traps: tuple[Trap, ...],
    reference: torch.nn.Module,
    fed: Probe,
    training: Training,
    got: Tensors,
    responses: Responses,
) -> set[str] | None:
    """Return the parameters that end elsewhere than the port's; None where this training cannot have the traps."""
    try:
        for trap in traps:
            assert trap.plant is not None
            training = trap.plant(training)
        updates = run_pytorch.trained(reference, fed, training)
    except (KeyError, AttributeError, UserError):  # the caller's own optimizer has other options
        return None
    if updates.keys() != got.keys():
        return {*(updates.keys() ^ got.keys())}
    quantity = "training.parameter"
    updates = {name: responses.compared(quantity, name, update) for name, update in updates.items()}
    return {n for n in got if not bounds.distance(updates[n], got[n]) <= responses.bound(quantity, n)}
