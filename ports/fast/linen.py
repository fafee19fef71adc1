"""Faster convolutions for CPUs in Linen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from ports.fast.convolution import conv_general_dilated


def use(net: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    """Return the module as an instance of a subclass in which every `nn.Conv` calls `ports.fast.convolution`."""
    module, variables = net
    if hasattr(type(module), "calls_fast_convolutions"):
        return net
    fields = [f.name for f in dataclasses.fields(module) if f.init and f.name != "parent"]
    return fast_class(type(module))(**{name: getattr(module, name) for name in fields}), variables


@functools.cache
def fast_class(plain: type[nn.Module]) -> Any:
    """Return a subclass of a module's class: the same fields, the same names of variables, fast convolutions."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_fast):
            return plain.__call__(self, *args, **kwargs)

    functools.update_wrapper(call, plain.__call__)
    return type(f"Fast{plain.__name__}", (plain,), {"__call__": call, "calls_fast_convolutions": True})


def _fast(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    layer = context.module
    if isinstance(layer, nn.Conv) and layer.conv_general_dilated is None and layer.conv_general_dilated_cls is None:
        # The layer is Linen's own copy for this call: its field is set past the lock on bound modules.
        object.__setattr__(layer, "conv_general_dilated", conv_general_dilated)
    return call(*args, **kwargs)
