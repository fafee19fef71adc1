"""From what is wrong by itself to the known mistake that it is.

Each trap that a layer can have is planted in the layer of the reference. The one that gives the port's outputs, in eval
and in train mode, and its statistics, is the diagnosis.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from parity import bounds
from parity.localise import FORWARD, Deviation, Run
from parity.report import Finding
from parity.traps import TRAPS, Trap


@dataclass(frozen=True)
class Case:
    """One mode: the reference, the forced run of the port, and what is wrong by itself."""

    reference: Run
    port: Run
    deviations: list[Deviation]


def findings(port: str, reference: nn.Module, cases: Mapping[bool, Case], leaf: Collection[str]) -> list[Finding]:
    """A finding a layer that is wrong by itself, in execution order.

    Args:
        cases: by mode, train or not.
        leaf: the layers in which no other is recorded.
    """
    found: dict[str, Finding] = {}
    for train in (False, True):
        for deviation in cases[train].deviations:
            if deviation.layer not in found:
                trap = _trap(deviation.layer, reference, cases) if deviation.layer in leaf else None
                text = f"{trap.text}; {trap.mend}" if trap else _said(deviation)
                found[deviation.layer] = Finding(port, deviation.layer, trap.name if trap else None, text)
    return list(found.values())


def _said(deviation: Deviation) -> str:
    mode = "train" if deviation.train else "eval"
    behind = deviation.call or "the output"
    return {
        "output": f"on the reference's input the layer gives another output in {mode} mode",
        "between": f"all layers give what they should, and what comes between {deviation.before or 'the input'} and "
        f"{behind} does not in {mode} mode (an activation, a pool, a sum, or their order)",
        "statistics": "the output is right, and the running statistics after it are not",
        "gradient": "the output is right, and the layer's gradients are not",
        "gradient between": f"the outputs are right, and the gradient that comes back to {behind} is not",
    }[deviation.aspect]


def _trap(layer: str, reference: nn.Module, cases: Mapping[bool, Case]) -> Trap | None:
    module = reference.get_submodule(layer)
    return next((t for t in TRAPS if isinstance(module, t.layers) and _explains(t, layer, module, cases)), None)


def _explains(trap: Trap, layer: str, module: nn.Module, cases: Mapping[bool, Case]) -> bool:
    """Whether the layer with this mistake gives what the port's gives, in both modes."""
    for train, case in cases.items():
        if layer not in case.reference.inputs or layer not in case.port.outputs:
            return False
        own = copy.deepcopy(module)
        if (planted := trap.plant(own)) is None:
            return False
        try:
            with torch.no_grad():
                y = planted.train(train)(torch.from_numpy(case.reference.inputs[layer]))
        except RuntimeError:  # shapes that this mistake does not give
            return False
        pairs = [(y.numpy(), case.port.outputs[layer])]
        if train:
            buffers = {f"{layer}.{name}": b.numpy() for name, b in own.named_buffers() if b.is_floating_point()}
            pairs += [(b, case.port.statistics[name]) for name, b in buffers.items() if name in case.port.statistics]
        if any(bounds.distance(a, b) > FORWARD * (bounds.norm(b) or 1.0) for a, b in pairs):
            return False
    return True
