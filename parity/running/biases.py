"""Biases that a port has and that PyTorch's layers do not have.

Some layers of Flax have one switch for several projections: `nnx.MultiHeadAttention` has a bias at its keys or at no
projection, Whisper's attention has one at queries and values alone. Such a port is right if nothing depends on the
bias, because the bias stays zero. In the check PyTorch's layer gets a bias of zeros, so that everything else can be
compared.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.numerics.quantities import Probe
from parity.running import pytorch as run_pytorch
from parity.running.taps import Tap, layer_of

# By PyTorch's class: the shape of the bias that a layer without one could have.
SHAPES: dict[type[nn.Module], Callable[[Any], Sequence[int]]] = {
    nn.Linear: lambda layer: (layer.out_features,),
    nn.modules.conv._ConvNd: lambda layer: (layer.out_channels,),
    nn.LayerNorm: lambda layer: layer.normalized_shape,
}

# The remainder of a gradient that cancels, as a fraction of the numbers that are summed.
CANCELLED = 1e-10


def shape(layer: nn.Module) -> Sequence[int] | None:
    """Return the shape of the bias that a layer lacks; None if it has one, or is of another type."""
    if not isinstance(layer, tuple(SHAPES)) or layer.bias is not None or layer.weight is None:
        return None
    return next(of(layer) for kind, of in SHAPES.items() if isinstance(layer, kind))


def with_zeros(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy of a model in which these layers have a bias of zeros."""
    model = copy.deepcopy(model)
    for name in names:
        layer = model.get_submodule(name)
        size = shape(layer)
        assert size is not None, name
        weight: Any = layer.weight
        layer.register_parameter("bias", nn.Parameter(weight.new_zeros(tuple(size)), weight.requires_grad))
    return model


def acting(net: nn.Module, probe: Probe, names: Collection[str]) -> list[str]:
    """Return the layers to whose bias the loss gives a gradient in train mode: there it does not stay zero.

    The function takes the gradient of each position at each output of a layer. If these gradients cancel in the sum, as
    for keys before a softmax and for layers before a BatchNorm, the bias has no gradient.
    """
    net, tap = copy.deepcopy(net).train(), _Added()
    with run_pytorch.tapped(net, tap, names):
        values = run_pytorch.run(net, probe, run_pytorch.inputs_of(probe))
    run_pytorch.backward(run_pytorch.loss_of(probe, values), probe)
    return [name for name in names if _acts(net.get_submodule(name), tap.zeros[name])]


class _Added(Tap):
    """Adds zeros to the outputs of layers, whose gradients are those at each position.

    Attributes:
        zeros: by the name of the layer, those of each call.
    """

    def __init__(self) -> None:
        self.zeros: dict[str, list[Tensor]] = defaultdict(list)

    def leave(self, name: str, y: Any) -> Any:
        zeros = torch.zeros_like(y, requires_grad=True)
        self.zeros[layer_of(name)].append(zeros)
        return y + zeros


def _acts(layer: Any, added: Sequence[Tensor]) -> bool:
    """Return whether the gradients at the outputs of a layer add up to a gradient of its bias."""
    total, size = torch.zeros_like(layer.bias), torch.zeros_like(layer.bias)
    last = tuple(layer.bias.shape)
    for zeros in added:
        if (grad := zeros.grad) is not None:
            rows = grad.movedim(1, -1) if isinstance(layer, nn.modules.conv._ConvNd) else grad
            rows = rows.reshape(-1, *last)
            total, size = total + rows.sum(0), size + rows.abs().sum(0)
    return bool((total.abs() > CANCELLED * size).any())
