"""Name the known mistakes behind what is wrong by itself.

The search plants each trap that a layer can have in the reference's layer. The diagnosis is the trap that gives the
port's outputs and statistics in both modes; where only gradients are wrong, the trap that gives those. One layer may
have several mistakes: a trap that mends a part stays planted, and the search goes on for the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.diagnosis import between
from parity.diagnosis.localise import BACKWARD, FORWARD, LOSS, NETWORK, Deviation, Run
from parity.numerics import bounds
from parity.numerics.layouts import first, mapped, with_first
from parity.numerics.quantities import Probe
from parity.reports.report import Finding
from parity.running import pytorch as run_pytorch
from parity.running.taps import layer_of
from parity.traps import losses as loss_traps
from parity.traps.layers import TRAPS, Trap, plant_in

Call = tuple[tuple[Any, ...], dict[str, Any]]


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
    network = between.Reference(reference, fed, names, {t: case.reference for t, case in cases.items()})
    found = []
    for (layer, _), deviations in groups.items():
        traps: Sequence[Trap | between.Operation | None]
        if layer == LOSS:
            traps = [loss_traps.explain(reference, fed, cases[True].port.loss)]
        elif layer in leaf:
            traps = _traps(layer, reference, fed, cases, deviations[0].aspect == "gradient")
        else:
            traps = [_operation(network, deviations, cases)]
        where = "" if layer in leaf or layer == LOSS else f"{_where(deviations[0])}: "
        for trap in traps or [None]:
            text = f"{where}{trap.text}; {trap.mend}" if trap else _said(deviations[0])
            found.append(Finding(port, layer, trap.name if trap else None, text))
    return found


def _enclosing(deviation: Deviation) -> str:
    """The module in which something between layers stands, where only the network as a whole is known to hold it."""
    behind = deviation.call if deviation.side == "enter" else deviation.after
    if deviation.layer != NETWORK or not behind:
        return deviation.layer
    pairs = zip(layer_of(deviation.before).split("."), layer_of(behind).split("."), strict=False)
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
        elif d.aspect == "gradient between" and d.call in cases[d.train].port.output_gradients and not places:
            places = [between.Place("gradient", d.call, d.train, cases[d.train].port.output_gradients[d.call])]
            break
    return between.explain(network, places, deviations[0].before) if places else None


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


def _traps(
    layer: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, Case], gradient: bool
) -> tuple[Trap, ...]:
    """Return the known mistakes that make the reference's layer what the port's is; empty where they are not known.

    Args:
        gradient: whether the outputs and statistics are right, and only the gradients wrong.
    """
    module = reference.get_submodule(layer)
    calls = {train: _call(reference, fed, layer, train) for train in cases}
    known = [t for t in TRAPS if isinstance(module, t.layers)]

    def differing(traps: tuple[Trap, ...], backward: bool) -> set[str] | None:
        return _differing(traps, layer, module, calls, cases, backward)

    forward = (
        () if gradient else _together([t for t in known if not t.gradient], (), partial(differing, backward=False))
    )
    if not forward and not gradient:
        return ()
    backward = partial(differing, backward=True)
    return _together([t for t in known if t.gradient], forward, backward) if backward(forward) else forward


def _together(
    traps: Sequence[Trap], planted: tuple[Trap, ...], differing: Callable[[tuple[Trap, ...]], set[str] | None]
) -> tuple[Trap, ...]:
    """Return `planted` and the traps that leave no difference together with it; `planted` where there are none such.

    Args:
        differing: from traps to the tensors that still differ; None where the layer cannot have these traps.
    """
    before, partly = differing(planted) or set(), []
    for trap in traps:
        left = differing((*planted, trap)) if trap not in planted else None
        if left is not None and not left:
            return (*planted, trap)
        if left is not None and left < before:
            partly.append((len(left), (*planted, trap)))
    for _, more in sorted(partly, key=itemgetter(0)):
        found = _together(traps, more, differing)
        if found != more:
            return found
    return planted


def _call(reference: nn.Module, fed: Probe, layer: str, train: bool) -> Call:
    """What the layer is called with, at its first call."""
    found: list[Call] = []
    net = copy.deepcopy(reference).train(train)
    net.get_submodule(layer).register_forward_pre_hook(
        lambda _, args, kwargs: found.append((mapped(args, _copied), mapped(kwargs, _copied))), with_kwargs=True
    )
    with torch.no_grad():
        run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))
    return found[0]


def _copied(_: str, x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone()


def _differing(
    traps: Sequence[Trap],
    layer: str,
    module: nn.Module,
    calls: Mapping[bool, Call],
    cases: Mapping[bool, Case],
    backward: bool,
) -> set[str] | None:
    """Return what differs from the port's where the layer has these mistakes; None where it cannot have them.

    Args:
        backward: compare the gradients in train mode, too.
    """
    found: set[str] = set()
    for train, case in cases.items():
        if layer not in case.reference.inputs or layer not in case.port.outputs:
            return None
        own = copy.deepcopy(module)
        args, keywords = calls[train]
        x, grad = first(args), backward and train
        if grad and x.is_floating_point():
            args = with_first(args, x := x.clone().requires_grad_())
        try:
            if not all(plant_in(trap, own) for trap in traps):
                return None
            with torch.set_grad_enabled(grad):
                y = first(own.train(train)(*args, **keywords))
            if grad and y.requires_grad:
                y.backward(torch.as_tensor(case.reference.output_gradients[layer]))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a form that it cannot have here
            return None
        pairs = [("output", y.detach().numpy(), case.port.outputs[layer], FORWARD)]
        if train:
            buffers = {f"{layer}.{name}": b.numpy() for name, b in own.named_buffers() if b.is_floating_point()}
            theirs = case.port.statistics
            pairs += [(name, b, theirs[name], FORWARD) for name, b in buffers.items() if name in theirs]
        if grad:
            pairs += _gradients(layer, x, own, case)
        found |= {
            f"{name} {train}"
            for name, a, b, allowed in pairs
            if bounds.distance(a, b) > allowed * (bounds.norm(b) or 1.0)
        }
    return found


def _gradients(
    layer: str, x: torch.Tensor, own: nn.Module, case: Case
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Yield gradients of the planted layer and of the port's: of the input, and of parameters that one call uses."""
    pairs = [("input", x, case.port.input_gradients.get(layer))] if x.is_floating_point() else []
    if f"{layer}#2" not in case.reference.outputs:
        pairs += [(name, p, case.port.parameters.get(f"{layer}.{name}")) for name, p in own.named_parameters()]
    for name, tensor, theirs in pairs:
        if theirs is not None:
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            yield f"gradient of {name}", gradient.numpy(), theirs, BACKWARD
