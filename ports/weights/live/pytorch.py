"""Reads and writes a `torch.nn.Module`: its state_dict is the torch form, except for numpy's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from ports.weights.form.torch_form import Rule, Target, WeightsError, match

# Types that numpy has only through ml_dtypes: they travel as integers of the same width.
EXTENDED = {
    torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e4m3fnuz: (torch.uint8, ml_dtypes.float8_e4m3fnuz),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    torch.float8_e5m2fnuz: (torch.uint8, ml_dtypes.float8_e5m2fnuz),
    torch.float8_e8m0fnu: (torch.uint8, ml_dtypes.float8_e8m0fnu),
}


def to_numpy(tensor: Tensor, copy: bool = True) -> np.ndarray:
    """A copy, bit by bit; without `copy`, a view of the tensor's memory if it is contiguous and on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    carrier, dtype = EXTENDED.get(tensor.dtype, (tensor.dtype, None))
    array = tensor.view(carrier).numpy()
    array = np.array(array) if copy else array
    return array if dtype is None else array.view(dtype)


def to_torch(array: np.ndarray) -> Tensor:
    """A copy, bit by bit."""
    for torch_dtype, (carrier, dtype) in EXTENDED.items():
        if array.dtype == dtype:
            bits = np.array(array, order="C").view(np.dtype(str(carrier).removeprefix("torch.")))
            return torch.from_numpy(bits).view(torch_dtype)
    return torch.from_numpy(np.array(array, order="C"))


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """The state_dict.

    Raises:
        WeightsError: it holds a value that is not a tensor, or a tensor without values.
    """
    state = net.state_dict()
    problems = []
    for name, value in state.items():
        if not isinstance(value, Tensor):
            problems.append(f"{name}: got {type(value).__name__}, expected a tensor")
        elif value.is_meta or nn.parameter.is_lazy(value):
            problems.append(f"{name}: has no values (meta device, or a lazy layer that was not run yet)")
    if problems:
        raise WeightsError(problems)
    return state


def read(net: nn.Module, copy: bool = True) -> dict[str, np.ndarray]:
    return {name: to_numpy(tensor, copy) for name, tensor in _tensors(net).items()}


def tensors(net: nn.Module) -> dict[str, np.ndarray]:
    """The tensors under the framework's own names, which the torch form keeps."""
    return read(net)


def write(net: nn.Module, weights: Mapping[str, Any], rules: Sequence[Rule] = (), copy: bool = True) -> None:
    if not copy:
        raise WeightsError("copy=False: got a PyTorch model, expected a Flax model; PyTorch writes into its parameters")
    state = _tensors(net)
    targets = {name: Target(tuple(t.shape), to_numpy(t.new_empty(0)).dtype) for name, t in state.items()}
    arrays = match(weights, targets, rules)
    seen: dict[object, str] = {}
    problems = []
    for name, tensor in state.items():
        other = seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name, name)
        if arrays[name].tobytes() != arrays[other].tobytes():
            problems.append(f"{name}: is one tensor with {other} in the model, got other values")
    if problems:
        raise WeightsError(problems)
    values = {name: to_torch(array) for name, array in arrays.items()}
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(values[name])
