"""Weights files into the hub form: PyTorch's (`.pt .pth .th .bin .ckpt`) and safetensors.

PyTorch files are read with `weights_only=True`: a file that would run code is refused. Of a training checkpoint the
weights are taken (under `state_dict` or `model`), and the prefix that DataParallel writes is removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.hub import WeightsError

TORCH = (".pt", ".pth", ".th", ".bin", ".ckpt")
SAFETENSORS = (".safetensors",)
NESTED = ("state_dict", "model")
PREFIXES = ("module.",)


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file under the file's own names, prefixes removed.

    Raises:
        WeightsError: no such file, an unknown format, a file that is damaged, holds no tensors or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    if path.suffix.lower() not in TORCH + SAFETENSORS:
        expected = " ".join(TORCH + SAFETENSORS)
        raise WeightsError(f"weights {path}: unknown format {path.suffix or '(no suffix)'!r}; expected {expected}")
    read = _safetensors if path.suffix.lower() in SAFETENSORS else _torch
    try:
        content = read(path)
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError(f"weights {path}: no memory to read it") from None
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"weights {path}: damaged, or not a file of weights: {reason[:160]}") from None
    return _stripped(content)


def _torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    from ports.weights.pytorch import to_numpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pickle protocol that PyTorch does not write: it reads it, or raises
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for _ in NESTED:
        if isinstance(content, Mapping) and (key := next((k for k in NESTED if k in content), None)):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"weights {path}: got {type(content).__name__}, expected a state_dict")
    if other := [f"{name} ({type(v).__name__})" for name, v in content.items() if not isinstance(v, torch.Tensor)]:
        raise WeightsError(f"weights {path}: {other[0]} is no tensor; expected a state_dict of tensors")
    if other := [name for name in content if not isinstance(name, str)]:
        raise WeightsError(f"weights {path}: got a tensor named {other[0]!r}, expected text")
    return {name: to_numpy(tensor) for name, tensor in content.items()}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    from ports.weights.pytorch import to_numpy

    if not (content := load_file(path)):
        raise WeightsError(f"weights {path}: holds no tensors")
    return {name: to_numpy(tensor) for name, tensor in content.items()}


def _stripped(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in PREFIXES:
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): array for name, array in content.items()}
    return content
