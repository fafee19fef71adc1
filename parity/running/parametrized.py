"""PyTorch's layers whose weight is computed from other parameters, as with weight norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# PyTorch's older norms of weights: the hook that computes the weight, and what makes the weight plain.
HOOKS: dict[type, Callable[[nn.Module, str], nn.Module]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
}


def effective(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy in which each computed tensor is a plain one with its value, and the names of these tensors.

    A model without such tensors is returned as it is.
    """
    hooked = [(module, leaf) for module in model.modules() for leaf in _hooked(module)]
    if not hooked and not any(parametrize.is_parametrized(module) for module in model.modules()):
        return model, ()
    # PyTorch cannot copy a tensor that it has computed.
    computed = [getattr(module, leaf) for module, leaf in hooked]
    plain = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    found: list[str] = []
    for name, module in [*plain.named_modules()]:
        leaves = _hooked(module)
        for leaf, removed in leaves.items():
            removed(module, leaf)
        if parametrize.is_parametrized(module):
            leaves = [*leaves, *_made_plain(module)]
        found += (f"{name}.{leaf}" if name else leaf for leaf in leaves)
    return plain, tuple(found)


def hooks_only(model: nn.Module) -> bool:
    """Whether a hook computes a tensor, as in PyTorch's older norms of weights: such a model cannot be copied."""
    return any(_hooked(module) for module in model.modules())


def _hooked(module: nn.Module) -> dict[str, Callable[[nn.Module, str], nn.Module]]:
    """Return the tensors that hooks compute, each with what makes it plain."""
    hooks: list[Any] = [hook for hook in module._forward_pre_hooks.values() if type(hook) in HOOKS]
    return {hook.name: HOOKS[type(hook)] for hook in hooks}


def _made_plain(module: Any) -> list[str]:
    """Give a module its own class and plain tensors; return their names.

    `remove_parametrizations` would change the class, which the original module shares.
    """
    values: dict[str, Tensor] = {leaf: getattr(module, leaf).detach().clone() for leaf in module.parametrizations}
    trained = {leaf: [p.requires_grad for p in module.parametrizations[leaf].parameters()] for leaf in values}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for leaf, value in values.items():
        if trained[leaf]:
            module.register_parameter(leaf, nn.Parameter(value, any(trained[leaf])))
        else:
            module.register_buffer(leaf, value)
    return [*values]
