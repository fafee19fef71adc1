"""PyTorch's files. Read with `weights_only=True`: a file that would run code is refused.

PyTorch itself checks neither the zip's checksums nor how much the file says it holds; both are checked here first. The
metadata is a record of its own in the zip (`archive/extra/…`, where PyTorch keeps extra files), so that the file is the
plain state_dict that `torch.load` expects.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.formats import Content
from ports.weights.hub import WeightsError
from ports.weights.lazy import is_array
from ports.weights.source import Source

EXTRA = "archive/extra/ports.json"
PIECE = 1 << 22


def read(source: Source) -> Content:
    import torch

    path = source.path
    with source.file.stream() as file:
        zipped = zipfile.is_zipfile(file)
    metadata = _checked(source) if zipped else {}
    with warnings.catch_warnings(), source.file.stream() as file:
        warnings.simplefilter("ignore")  # of a pickle protocol that PyTorch does not write: it reads it, or raises
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            said = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", str(error))
            if said is None:
                raise
            text = f"it calls {said[1]}, which is no part of a file of weights; it would run code and is not loaded"
            raise WeightsError(f"weights {path}: {text}") from None
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"weights {path}: got {type(content).__name__}, expected a state_dict")
    return Content(_to_numpy(source, content, ()), metadata)


def _checked(source: Source) -> dict[str, str]:
    """Refuses a zip whose members are compressed to more than the file, or do not have their checksums."""
    metadata = {}
    path = source.path
    with source.file.stream() as stream, zipfile.ZipFile(stream) as archive:
        sizes = [(member.file_size, member.compress_size) for member in archive.infolist()]
        declared = max(map(sum, zip(*sizes, strict=True)), default=0)
        if declared > (size := source.file.size):
            raise WeightsError(
                f"weights {path}: declares {declared:,} bytes in a file of {size:,}; PyTorch writes none such"
            )
        for member in archive.infolist():
            if member.CRC:  # PyTorch can be told to write none
                with archive.open(member) as file:
                    while file.read(PIECE):
                        pass
            if member.filename.endswith("/extra/ports.json"):
                metadata = json.loads(archive.read(member))
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _to_numpy(source: Source, node: Any, above: tuple[int, ...]) -> Any:
    import torch

    from ports.weights.pytorch import to_numpy

    if id(node) in above:
        raise WeightsError(f"weights {source.path}: holds a table within itself")
    if isinstance(node, torch.Tensor):
        if (
            node.layout == torch.strided
            and (size := node.numel() * node.element_size()) > node.untyped_storage().nbytes()
        ):
            source.budget.take(size, "a tensor that repeats a few numbers (save it with .contiguous())")
        return to_numpy(node)
    if isinstance(node, Mapping):
        return {key: _to_numpy(source, value, (*above, id(node))) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_to_numpy(source, value, (*above, id(node))) for value in node]
    return node


def write(path: Path, content: Content) -> None:
    import torch

    whole = _to_torch(content.tree, "")
    with path.open("wb") as file:  # a file, not its name: the name would become part of the content
        try:
            torch.save(whole, file)
        except RuntimeError as error:  # PyTorch's writer hides what the system said behind its own complaint
            raise error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error)) from None
    if content.metadata:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(EXTRA), json.dumps(content.metadata, sort_keys=True))


def _to_torch(node: Any, name: str) -> Any:
    from ports.weights.pytorch import to_torch

    if is_array(node):
        try:
            return to_torch(np.asarray(node))
        except TypeError:
            raise WeightsError(f"{name}: PyTorch has no type {node.dtype}") from None
    if isinstance(node, dict):
        return {key: _to_torch(value, f"{name}.{key}" if name else str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_to_torch(value, f"{name}.{i}") for i, value in enumerate(node)]
    return node
