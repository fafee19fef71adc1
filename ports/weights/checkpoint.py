"""A file in the hub form: read, taken apart, recognised; with the state of its optimizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights import formats, states, training
from ports.weights.guard import faults_of
from ports.weights.hub import WeightsError
from ports.weights.optimizer import STEP
from ports.weights.recognise import Found, recognise
from ports.weights.source import Source


@dataclass
class Checkpoint:
    """A file in the hub form.

    Attributes:
        weights: PyTorch's names and layouts; views of the file where possible.
        optimizer: as `ports.weights.optimizer.read` gives it; None where the file has none.
        options: the optimizer's groups: their options and `param_names`.
        found: the network and dialect; None where the names were taken as they are.
        notes: what is unusual, a line each.
        source: where it was read.
    """

    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray] | None
    options: list[dict[str, Any]] | None
    found: Found | None
    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    source: Source | None = None


def open_checkpoint(
    path: str | Path,
    *,
    format: str | None = None,
    model: str | None = None,
    rules: Any = None,
    key: str | None = None,
    weights_only: bool = False,
    steps: int | None = None,
    bare: bool = False,
    max_memory: int | None = None,
) -> Checkpoint:
    """A file in the hub form, with the state of its optimizer.

    Args:
        format: of the file, where its name does not tell.
        model: the network, where its tensors do not tell.
        rules: a `ports.weights.rulesfile.Rules` for a network of one's own.
        key: where the weights stand in a training checkpoint.
        weights_only: leaves the state of the optimizer out.
        steps: the number of steps done, where the file does not say it.
        bare: takes names and layouts as they are where no network is recognised.
        max_memory: bytes that reading the file may take, where the default is not enough (`ports.weights.budget`).

    Raises:
        WeightsError: the file cannot be read, or holds no network that is known.
    """
    content = formats.read(path, format, max_memory=max_memory)
    with faults_of(path):
        return _opened(path, content, formats.of(path, format), model, rules, key, weights_only, steps, bare)


def _opened(
    path: str | Path,
    content: formats.Content,
    row: formats.Format,
    model: str | None,
    rules: Any,
    key: str | None,
    weights_only: bool,
    steps: int | None,
    bare: bool,
) -> Checkpoint:
    """What the content of a file is."""
    source = content.source
    assert source is not None
    parts = training.split(path, content, row, key, weights_only)
    parts.notes += source.notes
    shapes = {name: array.shape for name, array in parts.weights.items()}
    try:
        found = rules.found(shapes) if rules is not None else recognise(shapes, model)
    except WeightsError as error:
        if not bare or model is not None or rules is not None:
            raise
        if parts.trained and not weights_only:
            raise WeightsError(
                [f"{path}: holds the state of an optimizer; --weights-only leaves it out", *error.problems]
            ) from None
        note = f"{error.problems[0].rstrip(':')}; names and layouts are taken as they are"
        return Checkpoint(parts.weights, None, None, None, row.name, parts.metadata, [*parts.notes, note], source)
    found.counters = _counters(parts.metadata)
    weights = found.read(parts.weights)
    notes = [*parts.notes, *found.notes, *([found.warning] if found.warning else [])]
    types = sorted({str(array.dtype) for array in weights.values() if array.dtype.kind in "fcV"})
    if len(types) > 1:
        notes.append(f"types are mixed: {', '.join(types)}; each is kept")
    state, options = None, None
    if parts.trained and not weights_only:
        state, options = _state(parts, found, weights, steps, notes)
    return Checkpoint(weights, state, options, found, row.name, parts.metadata, notes, source)


def _counters(metadata: Mapping[str, str]) -> dict[str, int]:
    """BatchNorm's counters where Flax has no place for them."""
    try:
        return {str(name): int(count) for name, count in json.loads(metadata.get("counters", "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _state(
    parts: training.Parts, found: Found, weights: Mapping[str, np.ndarray], steps: int | None, notes: list[str]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]] | None]:
    """The optimizer's state in the hub form, and its options."""
    hub = {found.raw.get(name, name): entry.hub for entry in found.entries if entry.parameter for name in entry.names}
    hub = {name: hub[name] for name in parts.weights if name in hub}
    states.number_to_name(parts, list(hub))
    bare = {raw.removeprefix("params."): raw for raw in hub}
    bare |= {name: raw for name, raw in found.raw.items() if raw in hub}  # of a model that was not wrapped yet
    result: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for slot, arrays in parts.slots.items():
        known = {bare.get(name.removesuffix(".value"), name): array for name, array in arrays.items()}
        problems += [f"{slot}/{name}: the network has no such parameter" for name in known if name not in hub]
        for name, array in found.read(known, parameters=True).items():
            if array.shape != weights[name].shape:
                problems.append(f"{slot}/{name}: got shape {array.shape}, expected {weights[name].shape}")
            result[f"{slot}/{name}"] = array
    if problems:
        raise WeightsError(problems)
    for name in parts.stateless:
        own = [key for key in result if key.partition("/")[2] == name]
        if not any(np.asarray(result[key]).any() for key in own):
            result = {key: array for key, array in result.items() if key not in own}
    if steps is not None and parts.step not in (None, steps):
        raise WeightsError(f"steps: got {steps}, the file says {parts.step}")
    step = parts.step if steps is None else steps
    if step is None:
        notes.append("the file does not say how many steps were done: 0 is taken; --steps N says it")
    return {STEP: np.array(step or 0, np.int64), **result}, states.groups_of(parts, hub, bare)
