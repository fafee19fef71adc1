"""Where a check runs, and whether GPUs may round products to TF32: one choice for both frameworks, restored afterwards.

PyTorch gets a default device, on which it creates all tensors made from numpy arrays, and `Crossing` brings results
back. JAX gets a default device, to which `Functional`s are moved. No other file knows about devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from parity.running.tf32 import products as tf32_products
from ports.errors import UserError
from ports.weights.live.pytorch import to_numpy, to_torch

DEVICES = ("cpu", "gpu")
TF32 = {"on": True, "off": False}

# Settings that a GPU needs before its first use: two frameworks share the memory, and sums have a fixed order.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

# In TF32 a factor has 10 fraction bits, in float32 it has 23.
TF32_UNITS = 2**13

_CONFIG: Any = jax.config
IN_JAX = {True: "tensorfloat32", False: "highest"}


def torch_gpu() -> torch.device | None:
    return torch.device("cuda") if torch.cuda.is_available() else None


def jax_gpu() -> Any:
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:  # JAX raises this if there is no such device
        return None


def has_tf32() -> bool:
    """Whether the GPU has TF32: NVIDIA's since compute capability 8."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability()[0] >= 8


def require(device: str, tf32: bool | None, dtypes: Sequence[str]) -> None:
    """Raise if a check cannot run on the device.

    Raises:
        UserError: an unknown device, a GPU that one of the frameworks does not see, TF32 on a device without it.
    """
    if device not in DEVICES:
        raise UserError(f"device: got {device!r}, expected {' or '.join(DEVICES)}")
    if tf32 not in (None, True, False):
        raise UserError(f"tf32: got {tf32!r}, expected True, False or None")
    if device == "gpu":
        with _variables(ENVIRONMENT):
            seen = {"PyTorch": torch_gpu(), "JAX": jax_gpu()}
        if blind := [name for name, found in seen.items() if found is None]:
            says = " and ".join(blind)
            raise UserError(
                f"device: got gpu, expected an available one: {says} see{'s' if len(blind) == 1 else ''} none; "
                "install the frameworks' GPU builds, or take the device cpu"
            )
    if tf32 and device == "cpu":
        raise UserError("tf32 on: got the device cpu, expected a GPU: only NVIDIA's have TF32; take the device gpu")
    if tf32 and not has_tf32():
        raise UserError("tf32 on: got a GPU without TF32, expected NVIDIA's of compute capability 8 or more; leave it")
    if tf32 is not None and "float32" not in dtypes:
        raise UserError(
            "tf32: got no run in float32, expected one: TF32 rounds float32's products; add the dtype float32"
        )


@contextmanager
def using(device: str, tf32: bool | None = None) -> Iterator[None]:
    """Both frameworks on this device, with this policy, during the block."""
    gpu = device == "gpu"
    with ExitStack() as stack:
        if gpu:
            stack.enter_context(_variables(ENVIRONMENT))
        in_torch = torch_gpu() if gpu else torch.device("cpu")
        in_jax = jax_gpu() if gpu else _jax_cpu()
        if in_torch is not None and in_torch != torch.get_default_device():
            stack.enter_context(in_torch)
        if in_jax is not None:
            stack.enter_context(jax.default_device(in_jax))
        if gpu:
            stack.enter_context(Crossing())
        if tf32 is not None:
            stack.enter_context(tf32_products(tf32))
            stack.enter_context(jax.default_matmul_precision(IN_JAX[tf32]))
        yield


def described(device: str) -> str:
    """The device's name for a report."""
    return torch.cuda.get_device_name() if device == "gpu" and torch_gpu() else device


class Crossing(TorchFunctionMode):
    """Converts between PyTorch and numpy, for every device and type: numpy has bfloat16 only through `ml_dtypes`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy:
            return to_numpy(args[0])
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], np.ndarray) and args[0].dtype.kind == "V":
            return to_torch(args[0]).to(torch.get_default_device())
        return func(*args, **(kwargs or {}))


def _jax_cpu() -> Any:
    """None if JAX has no CPU backend, or if the CPU is the default anyway."""
    if _CONFIG.jax_default_device is None and jax.default_backend() == "cpu":
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are not set already."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
