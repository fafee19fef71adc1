"""PyTorch's layers whose weight is computed from other parameters, as with weight norm."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.weight_norm import WeightNorm


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
        for leaf in leaves:
            remove_weight_norm(module, leaf)
        if parametrize.is_parametrized(module):
            leaves += _made_plain(module)
        found += (f"{name}.{leaf}" if name else leaf for leaf in leaves)
    return plain, tuple(found)


def hooks_only(model: nn.Module) -> bool:
    """Whether a hook computes a tensor, as in PyTorch's older weight norm: such a model cannot be copied."""
    return any(_hooked(module) for module in model.modules())


def _hooked(module: nn.Module) -> list[str]:
    return [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]


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
