"""Name a known mistake of the loss.

The experiment: a trap is planted in the functions that PyTorch's loss calls, and the loss is taken of the reference's
outputs.
"""

from __future__ import annotations

import math

import torch

from parity.diagnosis.localise import FORWARD, LOSS
from parity.diagnosis.operations import Named, PlantedCalls
from parity.diagnosis.search import search
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.traps.catalogue import LOSSES
from parity.traps.trap import Trap


def explain(reference: torch.nn.Module, fed: Probe, got: float) -> tuple[Named, ...]:
    """Return the trap with which PyTorch's loss equals `got`, on the reference's outputs in train mode."""
    net = run_pytorch.promote(reference).train()
    with torch.no_grad(), run_pytorch.tapped(net, run_pytorch.Tap(), ()):
        values = run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))

    made: dict[str, Named] = {}

    def differing(traps: tuple[Trap, ...]) -> set[str] | None:
        (trap,) = traps
        with torch.no_grad(), PlantedCalls(trap) as planted:
            try:
                loss = float(run_pytorch.loss_of(fed, values))
            except (RuntimeError, IndexError, ValueError):  # a label that no class has
                return None
        if not planted.made:
            return None
        made[trap.name] = Named(trap, tuple(planted.changed))
        return set() if loss == got or math.isclose(loss, got, rel_tol=FORWARD) else {LOSS}

    return tuple(made[trap.name] for trap in search(LOSSES, differing))
