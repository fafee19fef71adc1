"""What a check must leave as it was: the settings of the process and of the thread, and the models of the caller."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

DEVICES = ("cpu", "cuda", "mps", "xpu")
CONFIG: Any = jax.config


def settings() -> dict[str, Any]:
    """Return every setting that can be read, by name."""
    numpy = {"numpy.errstate": np.geterr(), "numpy.random": repr(np.random.get_state())}  # noqa: NPY002
    return {**_torch(), **_jax(), **_python(), **numpy}


def _torch() -> dict[str, Any]:
    backends: Any = torch.backends
    inductor = sys.modules.get("torch._inductor.config")
    found = {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill uninitialized": torch.utils.deterministic.fill_uninitialized_memory,  # pyright: ignore[reportAttributeAccessIssue]
        "inductor": getattr(inductor, "deterministic", False),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "cudnn": tuple(getattr(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
        "fp32 precision": [part.fp32_precision for part in _precisions()],
        "matmul precision": torch.get_float32_matmul_precision(),
        "allow tf32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "random": torch.get_rng_state().numpy().tobytes(),
        "autocast": [torch.is_autocast_enabled(device) for device in DEVICES],
        "autocast dtype": [torch.get_autocast_dtype(device) for device in DEVICES],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "modes": len(torch.overrides._get_current_function_mode_stack()),
    }
    return {f"torch.{name}": value for name, value in found.items()}


def _precisions() -> tuple[Any, ...]:
    backends: Any = torch.backends
    mkldnn = backends.mkldnn
    return backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, mkldnn, mkldnn.matmul, mkldnn.conv


def _jax() -> dict[str, Any]:
    found = {name: getattr(CONFIG, name, value) for name, value in CONFIG.values.items()}
    found |= {"attention": jax.nn.dot_product_attention, "custom_jvp": jax.custom_jvp.__call__}
    classes = (nnx.Linear, nnx.LayerNorm, nnx.BatchNorm)
    found |= {f"{cls.__name__}.__call__": vars(cls).get("__call__") for cls in classes}
    return {f"jax.{name}": value for name, value in found.items()}


def _python() -> dict[str, Any]:
    loggers = [logging.getLogger(), *(v for v in logging.Logger.manager.loggerDict.values() if hasattr(v, "level"))]
    found = {
        "random": random.getstate(),
        "warnings": ([*warnings.filters], warnings.showwarning),
        "path": [*sys.path],
        "recursion": sys.getrecursionlimit(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "gc": (gc.isenabled(), gc.get_threshold()),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "logging": {logger.name: (logger.level, logger.disabled, [*logger.handlers]) for logger in loggers},
    }
    return {f"python.{name}": value for name, value in found.items()}


def of_torch(net: torch.nn.Module) -> dict[str, Any]:
    """Return what a caller can see of a PyTorch model: tensors, gradients, flags and hooks."""
    found: dict[str, Any] = {}
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        found[name] = (id(tensor), tensor._version, tensor.requires_grad, tensor.detach().numpy().tobytes(), gradient)
    for name, module in net.named_modules():
        hooks = {key: dict(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        found[f"module {name}"] = (id(module), type(module), hooks, own)
    return found


def of_flax(net: Any) -> dict[str, Any]:
    """Return what a caller can see of a Flax model: the tree, its arrays, and the settings of its modules."""
    if isinstance(net, nnx.Module):
        graph, state = nnx.split(net)
        variables = {str(path): id(value) for path, value in nnx.iter_graph(net) if isinstance(value, nnx.Variable)}
        own = {str(path): (id(module), _plain(module)) for path, module in nnx.iter_modules(net)}
        return {"graph": graph, "variables": variables, "modules": own, **_arrays(state)}
    return {"module": (id(net[0]), repr(net[0])), "tree": jax.tree.structure(net[1]), **_arrays(net[1])}


def _plain(module: nnx.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not isinstance(value, (nnx.Variable, nnx.Module))}


def _arrays(tree: Any) -> dict[str, Any]:
    paths = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (id(a), str(a.dtype), _bytes(a)) for path, a in paths}


def _bytes(array: jax.Array) -> bytes:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array).tobytes()
