"""From what is wrong by itself to the known mistake that it is.

Each trap that a layer can have is planted in the layer of the reference. The one that gives the port's outputs, in eval
and in train mode, and its statistics, is the diagnosis; where only gradients are wrong, the one that gives those.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import nn

from parity import between, bounds, run_pytorch
from parity.layouts import first, mapped, with_first
from parity.localise import BACKWARD, FORWARD, LOSS, NETWORK, Deviation, Run
from parity.quantities import Probe
from parity.report import Finding
from parity.taps import layer_of
from parity.traps import losses as loss_traps
from parity.traps.layers import TRAPS, Trap

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
        text = _said(deviations[0])
        if layer == LOSS:
            trap = loss_traps.explain(reference, fed, cases[True].port.loss)
        elif layer in leaf:
            trap = _trap(layer, reference, fed, cases, deviations[0].aspect == "gradient")
        else:
            trap = _operation(network, deviations, cases)
        if trap:
            text = f"{trap.text}; {trap.mend}"
            if layer not in leaf and layer != LOSS:
                text = f"{_where(deviations[0])}: {text}"
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


def _trap(layer: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, Case], gradient: bool) -> Trap | None:
    """The known mistake in a layer: of those with wrong outputs or statistics, or of those with wrong gradients."""
    module = reference.get_submodule(layer)
    calls = {train: _call(reference, fed, layer, train) for train in cases}
    traps = (t for t in TRAPS if t.gradient is gradient and isinstance(module, t.layers))
    return next((t for t in traps if _explains(t, layer, module, calls, cases)), None)


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


def _explains(
    trap: Trap, layer: str, module: nn.Module, calls: Mapping[bool, Call], cases: Mapping[bool, Case]
) -> bool:
    """Whether the layer with this mistake gives what the port's gives, in both modes."""
    for train, case in cases.items():
        if layer not in case.reference.inputs or layer not in case.port.outputs:
            return False
        own = copy.deepcopy(module)
        args, keywords = calls[train]
        backward = trap.gradient and train
        x = first(args)
        if backward and x.is_floating_point():
            args = with_first(args, x := x.clone().requires_grad_())
        try:
            if (planted := trap.plant(own)) is None:
                return False
            with torch.set_grad_enabled(backward):
                y = first(planted.train(train)(*args, **keywords))
            if backward and y.requires_grad:
                y.backward(torch.as_tensor(case.reference.output_gradients[layer]))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a form that it cannot have here
            return False
        pairs = [(y.detach().numpy(), case.port.outputs[layer], FORWARD)]
        if train:
            buffers = {f"{layer}.{name}": b.numpy() for name, b in own.named_buffers() if b.is_floating_point()}
            own_statistics = case.port.statistics
            pairs += [(b, own_statistics[name], FORWARD) for name, b in buffers.items() if name in own_statistics]
        if backward:
            pairs += _gradients(layer, x, own, case)
        if any(bounds.distance(a, b) > allowed * (bounds.norm(b) or 1.0) for a, b, allowed in pairs):
            return False
    return True


def _gradients(
    layer: str, x: torch.Tensor, own: nn.Module, case: Case
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Gradients of the planted layer and of the port's: of the input, and of parameters that one call alone uses."""
    pairs = [(x, case.port.input_gradients.get(layer))] if x.is_floating_point() else []
    if f"{layer}#2" not in case.reference.outputs:
        pairs += [(p, case.port.parameters.get(f"{layer}.{name}")) for name, p in own.named_parameters()]
    for tensor, theirs in pairs:
        if theirs is not None:
            yield (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).numpy(), theirs, BACKWARD
