"""Makes PyTorch networks of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ports.building.classes import network_class
from ports.errors import UserError
from ports.families import inputs_of

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class WithoutNormalDraws(TorchFunctionMode):
    """Skips normal draws: on the meta device PyTorch loads its compiler at the first draw, which takes a second."""

    DRAWS = ("normal_", "kaiming_normal_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(spec: Any) -> nn.Module:
    """Return the network without memory for its weights (on the meta device), to count and to look at shapes."""
    with torch.device("meta"), WithoutNormalDraws():
        return network_class(spec, "pytorch")(spec)


def meta_inputs(spec: Any, batch: int, size: tuple[int, ...]) -> list[torch.Tensor]:
    """Return inputs for a `skeleton`: tensors without memory."""
    dtypes = {True: torch.float32, False: torch.int64}
    return [
        torch.empty(one.shape, dtype=dtypes[one.below is None], device="meta") for one in inputs_of(spec, batch, size)
    ]


def _shared(net: nn.Module) -> dict[str, str]:
    """Return the first names of parameters with several names, by their other names."""
    firsts: dict[int, str] = {}
    names = {name: firsts.setdefault(id(p), name) for name, p in net.named_parameters(remove_duplicate=False)}
    return {name: first for name, first in names.items() if name != first}


def _set(net: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(owner), leaf, parameter)


def create(spec: Any, *, seed: int | None = 0, dtype: str = "float32") -> nn.Module:
    """Return a network with initial weights drawn from `seed`, in train mode.

    PyTorch's global generator is left unchanged.

    Args:
        spec: a description of some family (`ports.families`).
        seed: None leaves every weight at zero, for a network whose weights are written next.
        dtype: type of weights and activations; with bfloat16, BatchNorm's parameters and statistics stay float32.

    Raises:
        UserError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"{spec.name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if seed is None:
        net = skeleton(spec)
        shared = _shared(net)
        net = net.to_empty(device="cpu")
        for name, first in shared.items():  # `to_empty` makes two parameters of one
            _set(net, name, net.get_parameter(first))
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
