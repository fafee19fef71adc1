"""Makes PyTorch networks of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ports.building.classes import network_class
from ports.errors import UserError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class WithoutNormalDraws(TorchFunctionMode):
    """Skips `Tensor.normal_`: on the meta device PyTorch loads its compiler for the first of them, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if getattr(func, "__name__", "") == "normal_" else func(*args, **(kwargs or {}))


def skeleton(spec: Any) -> nn.Module:
    """Return the network without memory for its weights (on the meta device): to count and to look at shapes."""
    with torch.device("meta"), WithoutNormalDraws():
        return network_class(spec, "pytorch")(spec)


def create(spec: Any, *, seed: int | None = 0, dtype: str = "float32") -> nn.Module:
    """Return a network with initial weights drawn from `seed`, in train mode.

    PyTorch's global generator is left as it was.

    Args:
        spec: a description of some family (`ports.families`).
        seed: None leaves every weight zero, for a network whose weights are written next.
        dtype: type of weights and activations; with bfloat16, BatchNorm's parameters and statistics stay float32.

    Raises:
        UserError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"{spec.name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if seed is None:
        net = skeleton(spec).to_empty(device="cpu")
        net.load_state_dict({k: torch.zeros_like(v) for k, v in net.state_dict().items()})
    else:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` seeds every GPU too
            net = network_class(spec, "pytorch")(spec)
    net.to(DTYPES[dtype])
    if dtype == "bfloat16":
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    return net
