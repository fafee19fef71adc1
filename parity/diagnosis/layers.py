"""Name the known mistakes in one layer.

The experiment: traps are planted in the reference's layer, which then runs on the reference's inputs in both modes. Its
outputs and statistics are compared with the port's; if these are right, its gradients are compared. One layer may have
several mistakes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.diagnosis.localise import BACKWARD, FORWARD, ForcedRuns
from parity.diagnosis.search import search
from parity.numerics import bounds
from parity.numerics.layouts import first, rebuilt, with_first
from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.lifted_pytorch import backward as backward_pass
from parity.running.lifted_pytorch import lifted
from parity.running.packed import first_padded
from parity.traps.catalogue import LAYERS
from parity.traps.planting import plant_in
from parity.traps.trap import Trap

Call = tuple[tuple[Any, ...], dict[str, Any]]


def explain(
    layer: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, ForcedRuns], gradient: bool
) -> tuple[Trap, ...]:
    """Return the known mistakes that turn the reference's layer into the port's; empty if there are none.

    Args:
        gradient: whether the outputs and statistics are right, and only the gradients wrong.
    """
    module = reference.get_submodule(layer)
    calls = {train: _call(reference, fed, layer, train) for train in cases}
    known = [t for t in LAYERS if isinstance(module, t.layers)]

    def differing(traps: tuple[Trap, ...], backward: bool) -> set[str] | None:
        return _differing(traps, (layer, module), fed, calls, cases, backward)

    forward: tuple[Trap, ...] = ()
    if not gradient:
        of_values = [t for t in known if not t.gradient]
        forward = search(of_values, partial(differing, backward=False), together=True)
        if not forward:
            return ()
    backward = partial(differing, backward=True)
    if not backward(forward):
        return forward
    return search([t for t in known if t.gradient], backward, forward, together=True)


def _call(reference: nn.Module, fed: Probe, layer: str, train: bool) -> Call:
    """The arguments of the layer at its first call."""
    found: list[Call] = []
    net = copy.deepcopy(reference).train(train)
    net.get_submodule(layer).register_forward_pre_hook(
        lambda _, args, kwargs: found.append((rebuilt(args, _copied), rebuilt(kwargs, _copied))), with_kwargs=True
    )
    with torch.no_grad():
        run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))
    return found[0]


def _copied(_: str, x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone()


def _differing(
    traps: Sequence[Trap],
    planted: tuple[str, nn.Module],
    fed: Probe,
    calls: Mapping[bool, Call],
    cases: Mapping[bool, ForcedRuns],
    backward: bool,
) -> set[str] | None:
    """Return what differs from the port if the layer has these mistakes; None if it cannot have them.

    Args:
        planted: the layer by name, and itself.
        backward: compare the gradients in train mode, too.
    """
    found: set[str] = set()
    layer, module = planted
    for train, case in cases.items():
        recorded = layer in case.reference.inputs and layer in case.port.outputs
        if not recorded and (backward or layer in case.reference.outputs):
            return None
        own = copy.deepcopy(module)
        args, keywords = calls[train]
        slope = case.reference.output_gradients.get(layer)
        x, grad = first(args), backward and train and slope is not None
        if grad and x.is_floating_point():
            args = with_first(args, x := x.clone().requires_grad_())
        try:
            if not all(plant_in(trap, own) for trap in traps):
                return None
            with torch.set_grad_enabled(grad), lifted(None, fed.pins):
                y = first_padded(own.train(train)(*args, **keywords))
            if grad and y.requires_grad:
                backward_pass(y, fed.pins, torch.as_tensor(slope))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a form that it cannot have here
            return None
        pairs = []
        if recorded:  # a layer that the port divides differently has only statistics
            outputs = [fed.counted(array) for array in (y.detach().numpy(), case.port.outputs[layer])]
            pairs = [("output", *outputs, FORWARD)]
        if train:
            buffers = {f"{layer}.{name}": b.numpy() for name, b in own.named_buffers() if b.is_floating_point()}
            theirs = case.port.statistics
            pairs += [(name, b, theirs[name], FORWARD) for name, b in buffers.items() if name in theirs]
        if grad:
            pairs += _gradients(layer, args, own, case)
        found |= {
            f"{name} {train}"
            for name, a, b, allowed in pairs
            if bounds.distance(a, b) > allowed * (bounds.norm(b) or 1.0)
        }
    return found


def _gradients(
    layer: str, args: tuple[Any, ...], own: nn.Module, case: ForcedRuns
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Yield gradients of the planted layer and of the port's: of the input, and of parameters that one call uses."""
    x = first(args)
    inputs = first_padded(with_first(args, _gradient(x))) if x.is_floating_point() else None
    pairs = [] if inputs is None else [("input", inputs, case.port.input_gradients.get(layer))]
    around = case.port.margins.get(layer)
    if f"{layer}#2" not in case.reference.outputs:
        named = own.named_parameters()
        pairs += [(name, _gradient(p), case.port.parameters.get(f"{layer}.{name}")) for name, p in named]
    for name, gradient, theirs in pairs:
        if theirs is not None:
            ours = gradient.numpy()
            if name == "input" and around is not None:  # to the zeros that the port's layer adds comes no gradient
                ours, theirs = around.to_port(ours), around.to_port(theirs)
            yield f"gradient of {name}", ours, theirs, BACKWARD


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
