"""Describes a checkpoint for a person: format, dialect, network, tensors, and what is unusual.

For safetensors only the header is read, for other formats the whole file.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ports.config import TYPE
from ports.errors import UserError
from ports.families import Described
from ports.frameworks import port_of
from ports.weights.checkpoints import splitting, stored_states
from ports.weights.checkpoints.described import of_source
from ports.weights.files import formats
from ports.weights.files.guard import faults_of
from ports.weights.form.lazy import Array
from ports.weights.form.torch_form import WeightsError, describe
from ports.weights.known.recognise import recognise, require

LISTED = 3


@dataclass
class Inspection:
    """Facts by name, what is unusual, and one row per tensor: name, shape, type."""

    facts: dict[str, str]
    notes: list[str] = field(default_factory=list)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    network: str | None = None
    dialect: str | None = None


def tensors(path: str | Path, format: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of the network in a file, or of a live network, under their own names.

    Args:
        path: a file, or `package.module:function` that returns a model (Linen's with its variables).
    """
    if re.fullmatch(r"[\w.]+:\w+", str(path)) and not Path(path).exists():
        return _of_model(str(path))
    content = formats.read(path, format)
    with faults_of(path):
        return splitting.split(path, content, formats.of(path, format)).weights


def inspect(
    path: str | Path,
    *,
    format: str | None = None,
    model: str | None = None,
    key: str | None = None,
    values: bool = False,
    max_memory: int | None = None,
    config: str | Path | None = None,
) -> Inspection:
    """What a file holds.

    Args:
        model: the network, if its tensors do not show it.
        values: also look at the numbers.
        max_memory, config: as in `open_checkpoint`.

    Raises:
        WeightsError: it cannot be read.
    """
    require(model)
    if config is not None and model is not None:
        raise WeightsError("--config: got --model besides, expected one of them")
    content = formats.read(path, format, check=values, max_memory=max_memory)
    with faults_of(path):
        row = formats.of(path, format)
        about = of_source(path, row, content.metadata, config)
        return _inspected(path, content, row, model, about, key, values)


def _inspected(
    path: str | Path,
    content: formats.Content,
    row: formats.Format,
    model: str | None,
    described: Described | None,
    key: str | None,
    values: bool,
) -> Inspection:
    parts = splitting.split(path, content, row, key)
    arrays = parts.weights
    size = sum(array.nbytes for array in arrays.values())
    types = Counter(str(array.dtype) for array in arrays.values())
    found = Inspection({"file": str(path), "format": row.name}, list(parts.notes))
    try:
        known = recognise({name: array.shape for name, array in arrays.items()}, model, described)
        found.network, found.dialect = known.network, known.dialect
        found.facts |= {"dialect": known.dialect, "network": known.label}
        if known.described is not None:
            found.facts["config"] = f"{known.described.place} ({known.described.keys[TYPE]})"
            if difference := known.described.difference("nnx"):
                found.notes.append(difference)
        found.notes += [*known.notes, *([known.warning] if known.warning else [])]
    except WeightsError as error:
        found.facts["network"] = "not recognised"
        found.notes += [line.strip() for line in error.problems[: 1 + LISTED]]
        if len(error.problems) > 1 + LISTED:
            found.notes.append(f"… and {len(error.problems) - 1 - LISTED} more")
    numbers = sum(array.size for array in arrays.values())
    found.facts["tensors"] = f"{len(arrays)}, {numbers:,} numbers, {size:,} bytes"
    found.facts["types"] = ", ".join(f"{dtype} ({count})" for dtype, count in types.most_common())
    if parts.trained:
        try:
            found.facts["optimizer"] = stored_states.summary(parts)
        except WeightsError as error:
            found.facts["optimizer"] = "cannot be read"
            found.notes += error.problems[:1]
    found.facts |= {f"about {name}": text[:100] for name, text in content.metadata.items()}
    found.notes += _unusual(arrays, types, values)
    assert content.source is not None
    found.notes += content.source.notes
    content.source.unchanged()
    found.rows = [(name, str(array.shape), str(array.dtype)) for name, array in arrays.items()]
    return found


def _unusual(arrays: Mapping[str, Array], types: Counter[str], values: bool) -> list[str]:
    notes = []
    floats = [
        name for name in types if np.dtype(next(a.dtype for a in arrays.values() if str(a.dtype) == name)).kind in "fV"
    ]
    if len(floats) > 1:
        notes.append(f"types are mixed: {', '.join(floats)}")
    if empty := [name for name, array in arrays.items() if array.size == 0]:
        notes.append(f"empty: {describe(empty)}")
    if values:
        for text, test in (
            ("NaN", lambda a: np.isnan(a).any()),
            ("infinite", lambda a: np.isinf(a).any()),
            ("all zero", lambda a: not a.any()),
        ):
            with np.errstate(all="ignore"):
                held = [n for n, a in arrays.items() if a.size and a.dtype.kind in "fcV" and test(np.asarray(a))]
            if held:
                notes.append(f"{text}: {describe(held)}")
    return notes


def _of_model(path: str) -> dict[str, np.ndarray]:
    """The tensors of a model that a function returns, under its framework's own names."""
    module, _, function = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever somebody's module raises
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise WeightsError(f"{path}: {said}; expected a function that returns a model") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        return port_of(made).live.tensors(made)
    except UserError as error:
        raise WeightsError(f"{path}: {error}") from None
