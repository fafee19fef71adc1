"""Make a finding of everything that is wrong by itself, and name the known mistakes behind it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from torch import nn

from parity.diagnosis import layers, losses, operations
from parity.diagnosis.localise import LOSS, NETWORK, Deviation, ForcedRuns
from parity.numerics.quantities import Probe
from parity.reports.report import Finding
from parity.running.taps import layer_of
from parity.traps.trap import Trap

NUMBER = re.compile(r"\d+")


def findings(
    port: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, ForcedRuns], leaf: Collection[str]
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
    network = operations.ReferenceNetwork(reference, fed, names, {t: case.reference for t, case in cases.items()})
    found = []
    for (layer, _), deviations in groups.items():
        if layer == LOSS:
            traps = losses.explain(reference, fed, cases[True].port.loss)
        elif layer in leaf:
            traps = layers.explain(layer, reference, fed, cases, deviations[0].aspect == "gradient")
        else:
            traps = _operation(network, deviations, cases)
        where = "" if layer in leaf or layer == LOSS else f"{_where(deviations[0])}: "
        for trap in traps or [None]:
            text = f"{where}{trap.text}; {trap.mend}" if trap else _said(deviations[0])
            found.append(Finding(port, layer, trap.name if trap else None, text))
    return together(found)


def together(found: Sequence[Finding]) -> list[Finding]:
    """Return one finding for each mistake that stands in several places.

    These are places with one known mistake, or places of which the same is said but for numbers.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        said = finding.trap or NUMBER.sub("#", f"{finding.layer} {finding.text}")
        groups.setdefault((finding.port, said), []).append(finding)
    return [
        replace(first, also=tuple(dict.fromkeys(f.layer for f in rest if f.layer != first.layer)))
        for first, *rest in groups.values()
    ]


def _enclosing(deviation: Deviation) -> str:
    """The module in which something between layers stands, where only the network as a whole is known to hold it."""
    behind = deviation.call if deviation.side == "enter" else deviation.after
    if deviation.layer != NETWORK or not behind:
        return deviation.layer
    pairs = zip(layer_of(deviation.before).split("."), layer_of(behind).split("."), strict=False)
    return ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) or NETWORK


def _operation(
    network: operations.ReferenceNetwork, deviations: Sequence[Deviation], cases: Mapping[bool, ForcedRuns]
) -> tuple[Trap, ...]:
    """The known mistake between layers that gives what the port has wherever it differs here."""
    places = []
    for d in deviations:
        if d.aspect == "between":
            run = cases[d.train].port
            tensors = {"enter": run.inputs, "leave": run.outputs, "end": run.values}[d.side]
            places.append(operations.DifferingPlace(d.side, d.call, d.train, tensors[d.call]))
        elif d.aspect == "gradient between" and d.call in cases[d.train].port.output_gradients and not places:
            places = [
                operations.DifferingPlace("gradient", d.call, d.train, cases[d.train].port.output_gradients[d.call])
            ]
            break
    return operations.explain(network, places) if places else ()


def _where(deviation: Deviation) -> str:
    behind = "the output" if deviation.side == "end" else deviation.after or deviation.call
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
