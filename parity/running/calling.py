"""Makes the probe of somebody's own pair: the inputs, and how each side is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from parity.numerics.calls import switched
from parity.numerics.layouts import leaves
from parity.numerics.quantities import Loss, Probe
from parity.options import CallOptions
from parity.running import probes
from parity.running.flax_ports import FLAX_PORTS, port_of
from parity.running.objects import OpenedModel


def prepared(model: nn.Module, opened: OpenedModel, inputs: Sequence[Any], options: CallOptions, loss: Loss) -> Probe:
    """Return the inputs of both models, and how they are called.

    Raises:
        UserError: inputs that are not numbers, a call that one of the models does not take.
    """
    fed = probes.given(inputs, options, loss)
    if opened.layout is not None:
        names = [name for name, _ in (*leaves(fed.inputs, "input"), *leaves(dict(fed.keywords), "keyword"))]
        fed = replace(fed, layouts={**dict.fromkeys(names, opened.layout), **fed.layouts})
    called = FLAX_PORTS[port_of(opened.net)].called(opened.net)
    sides = [
        (replace(fed.torch_call, function=options.torch_call), model),
        (replace(fed.flax_call, function=options.flax_call, holder=opened.holder), called),
    ]
    for call, one in sides:
        call.require_method(one)
    torch_call, flax_call = switched(options.modes or {}, sides)
    for call, one in ((torch_call, model), (flax_call, called)):
        call.require(one, fed.inputs, fed.keywords)
    return replace(fed, torch_call=torch_call, flax_call=flax_call)
