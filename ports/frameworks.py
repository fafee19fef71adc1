"""Which framework a live network belongs to. No framework is loaded: that of a live network is loaded already."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ports.errors import UserError

FRAMEWORKS = ("pytorch", "nnx", "linen")


def framework_of(net: Any) -> str:
    """Return `pytorch`, `nnx` or `linen`.

    Raises:
        UserError: `net` is not a `torch.nn.Module`, an `nnx.Module` or Linen's `(module, variables)`.
    """
    torch, nnx, linen = (sys.modules.get(name) for name in ("torch", "flax.nnx", "flax.linen"))
    if torch and isinstance(net, torch.nn.Module):
        return "pytorch"
    if nnx and isinstance(net, nnx.Module):
        return "nnx"
    if linen and _is_pair(net, linen.Module):
        return "linen"
    got = f"{type(net).__module__}.{type(net).__qualname__}"
    hint = "; for Linen give the pair (module, variables)" if linen and isinstance(net, linen.Module) else ""
    raise UserError(f"got {got}, expected a torch.nn.Module, an nnx.Module or Linen's (module, variables){hint}")


def _is_pair(net: Any, module: type) -> bool:
    return isinstance(net, tuple) and len(net) == 2 and isinstance(net[0], module) and isinstance(net[1], Mapping)
