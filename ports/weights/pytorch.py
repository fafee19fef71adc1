"""Reads and writes a `torch.nn.Module`: its state_dict is the hub form, but for numpy's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from ports.weights.hub import Rule, Target, match

# Types that numpy has from ml_dtypes only: they travel as integers of the same width.
EXTENDED = {
    torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy, bit by bit."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in EXTENDED:
        carrier, dtype = EXTENDED[tensor.dtype]
        return np.array(tensor.view(carrier).numpy()).view(dtype)
    return np.array(tensor.numpy())


def to_torch(array: np.ndarray) -> Tensor:
    """A copy, bit by bit."""
    for torch_dtype, (carrier, dtype) in EXTENDED.items():
        if array.dtype == dtype:
            bits = np.array(array, order="C").view(np.dtype(str(carrier).removeprefix("torch.")))
            return torch.from_numpy(bits).view(torch_dtype)
    return torch.from_numpy(np.array(array, order="C"))


def read(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: to_numpy(tensor) for name, tensor in net.state_dict().items()}


def write(net: nn.Module, weights: Mapping[str, Any], rules: Sequence[Rule] = ()) -> None:
    state = net.state_dict()
    targets = {name: Target(tuple(t.shape), to_numpy(t.new_empty(0)).dtype) for name, t in state.items()}
    values = {name: to_torch(array) for name, array in match(weights, targets, rules).items()}
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(values[name])
