"""From what is wrong by itself to the known mistake that it is.

Each trap that a layer can have is planted in the layer of the reference. The one that gives the port's outputs, in eval
and in train mode, and its statistics, is the diagnosis.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import nn

from parity import between, bounds, loss_traps
from parity.localise import FORWARD, LOSS, NETWORK, Deviation, Run
from parity.quantities import Probe
from parity.report import Finding
from parity.taps import layer_of
from parity.traps import TRAPS, Trap


@dataclass(frozen=True)
class Case:
    """One mode: the reference, the forced run of the port, and what is wrong by itself."""

    reference: Run
    port: Run
    deviations: list[Deviation]


def findings(
    port: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, Case], leaf: Collection[str]
) -> list[Finding]:
    """A finding a place that is wrong by itself, in execution order.

    Args:
        cases: by mode, train or not.
        leaf: the layers in which no other is recorded.
    """
    groups: dict[tuple[str, str], list[Deviation]] = {}
    for train in (False, True):
        for deviation in cases[train].deviations:
            layer = _enclosing(deviation)
            groups.setdefault((layer, deviation.before if layer == NETWORK else ""), []).append(deviation)
    names = {layer_of(call) for case in cases.values() for call in case.reference.outputs}
    network = between.Reference(reference, fed, names, {t: case.reference.outputs for t, case in cases.items()})
    found = []
    for (layer, _), deviations in groups.items():
        text = _said(deviations[0])
        if layer == LOSS:
            trap = loss_traps.explain(reference, fed, cases[True].port.loss)
        else:
            trap = _trap(layer, reference, cases) if layer in leaf else _operation(network, deviations, cases)
        if trap:
            text = f"{trap.text}; {trap.mend}"
            if layer not in leaf and layer != LOSS:
                text = f"{_where(deviations[0])}: {text}"
        found.append(Finding(port, layer, trap.name if trap else None, text))
    return found


def _enclosing(deviation: Deviation) -> str:
    """The module in which something between layers stands, where only the network as a whole is known to hold it."""
    if deviation.layer != NETWORK or deviation.side != "enter":
        return deviation.layer
    pairs = zip(layer_of(deviation.before).split("."), layer_of(deviation.call).split("."), strict=False)
    return ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) or NETWORK


def _operation(
    network: between.Reference, deviations: Sequence[Deviation], cases: Mapping[bool, Case]
) -> between.Operation | None:
    """The known mistake between layers that gives what the port has wherever it differs here."""
    places = []
    for d in deviations:
        if d.aspect == "between":
            run = cases[d.train].port
            tensors = {"enter": run.inputs, "leave": run.outputs, "end": run.values}[d.side]
            places.append(between.Place(d.side, d.call, d.train, tensors[d.call]))
    return between.explain(network, places, deviations[0].before) if places else None


def _where(deviation: Deviation) -> str:
    behind = "the output" if deviation.side == "end" else deviation.call
    return f"between {deviation.before or 'the input'} and {behind}"


def _said(deviation: Deviation) -> str:
    mode = "train" if deviation.train else "eval"
    return {
        "output": f"on the reference's input the layer gives another output in {mode} mode",
        "between": f"all layers give what they should, and what comes {_where(deviation)} "
        f"does not in {mode} mode (an activation, a pool, a sum, or their order)",
        "statistics": "the output is right, and the running statistics after it are not",
        "gradient": "the output is right, and the layer's gradients are not",
        "loss": "the outputs are right, and the loss of them is not",
        "gradient between": f"the outputs are right, and the gradient that comes back to {deviation.call} is not",
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
