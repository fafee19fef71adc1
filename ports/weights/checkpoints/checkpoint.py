"""Reads a file, takes it apart and recognises it: the result is in the torch form, with the state of its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ports.families import Described
from ports.weights.checkpoints import splitting, state_layout, stored_states
from ports.weights.checkpoints.described import of_source
from ports.weights.files import formats
from ports.weights.files.guard import faults_of
from ports.weights.files.source import Source
from ports.weights.form.lazy import Array
from ports.weights.form.torch_form import WeightsError, describe, lossless
from ports.weights.known.recognise import Contradiction, Found, recognise
from ports.weights.layers.leaves import COUNTER
from ports.weights.optimizer.table import STEP, WEIGHTS_ONLY, of_groups, whole_number
from ports.weights.rules.rulesfile import Rules


@dataclass
class Checkpoint:
    """A file in the torch form.

    Attributes:
        weights: PyTorch's names and layouts. A tensor of safetensors stays in the file: `numpy.asarray` reads it.
        optimizer: as `ports.weights.optimizer.read` gives it; None if the file has none.
        options: the optimizer's groups: their options and `param_names`.
        found: the network and dialect; None if the names were taken as they are.
        notes: what is unusual, a line each.
        source: where it was read.
    """

    weights: dict[str, Any]
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
    rules: Rules | None = None,
    key: str | None = None,
    weights_only: bool = False,
    steps: int | None = None,
    bare: bool = False,
    max_memory: int | None = None,
    config: str | Path | None = None,
) -> Checkpoint:
    """Open a file in the torch form, with the state of its optimizer.

    Args:
        format: of the file, if its name does not show it.
        model: the network, if its tensors do not show it.
        rules: a `ports.weights.rules.rulesfile.Rules` for a network of your own.
        key: where the weights are in a training checkpoint.
        weights_only: leave out the state of the optimizer.
        steps: the number of steps done, if the file does not have it.
        bare: take names and layouts as they are if no network is recognised.
        max_memory: bytes that reading the file may take, if the default is not enough (`files/budget.py`).
        config: a transformers' config.json of the network, if there is none beside the file (`described.py`).

    Raises:
        WeightsError: the file cannot be read, or holds no network that is known.
    """
    if config is not None and (model is not None or rules is not None):
        raise WeightsError("--config: got --model or --rules besides, expected one of them")
    content = formats.read(path, format, max_memory=max_memory)
    with faults_of(path):
        row = formats.of(path, format)
        about = None if rules is not None else of_source(path, row, content.metadata, config)
        return _opened(path, content, row, model, rules, about, key, weights_only, steps, bare)


def _opened(
    path: str | Path,
    content: formats.Content,
    row: formats.Format,
    model: str | None,
    rules: Rules | None,
    described: Described | None,
    key: str | None,
    weights_only: bool,
    steps: int | None,
    bare: bool,
) -> Checkpoint:
    """Recognise the content of a file."""
    source = content.source
    parts = splitting.split(path, content, row, key, weights_only)
    parts.notes += source.notes if source is not None else []
    shapes = {name: array.shape for name, array in parts.weights.items()}
    try:
        found = rules.found(shapes) if rules is not None else recognise(shapes, model, described)
    except WeightsError as error:
        if not bare or model is not None or rules is not None or isinstance(error, Contradiction):
            raise
        if parts.trained and not weights_only:
            raise WeightsError(
                [f"{path}: holds the state of an optimizer; --weights-only leaves it out", *error.problems]
            ) from None
        note = f"{error.problems[0].rstrip(':')}; names and layouts are taken as they are"
        return Checkpoint(parts.weights, None, None, None, row.name, parts.metadata, [*parts.notes, note], source)
    found.counters = state_layout.counters(parts.metadata, _uncounted(found, parts.weights))
    weights = found.read(parts.weights)
    notes = [*parts.notes, *found.notes, *([found.warning] if found.warning else [])]
    types = sorted({str(array.dtype) for array in weights.values() if array.dtype.kind in "fcV"})
    if len(types) > 1:
        notes.append(f"types are mixed: {', '.join(types)}; each is kept")
    state, options = None, None
    if parts.trained and not weights_only:
        state, options = _state(parts, found, weights, steps, notes)
    return Checkpoint(weights, state, options, found, row.name, parts.metadata, notes, source)


def _uncounted(found: Found, weights: Mapping[str, Any]) -> list[str]:
    """The counters of BatchNorms for which the file has no tensor."""
    rows = [entry for entry in found.entries if entry.leaf.torch == COUNTER]
    return [row.torch for row in rows if not all(found.raw.get(name, name) in weights for name in row.names)]


def _state(
    parts: splitting.Parts, found: Found, weights: Mapping[str, Any], steps: int | None, notes: list[str]
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """The optimizer's state in the torch form, and its options."""
    by_array: dict[str, tuple[str, ...]] = {}
    for entry in found.entries:
        for raw in (found.raw.get(name, name) for name in entry.names if entry.parameter):
            by_array[raw] = (*by_array.get(raw, ()), entry.torch)
    torch_names = {name: by_array[name] for name in parts.weights if name in by_array}
    resolved = stored_states.resolve(parts, list(torch_names))
    if resolved.groups is None:
        resolved.options, resolved.stateless = state_layout.about(parts.metadata)
    bare = {raw.removeprefix("params."): raw for raw in torch_names}
    bare |= {name: raw for name, raw in found.raw.items() if raw in torch_names}  # of a model that was not wrapped yet
    tensors = {slot: _moved(slot, arrays, found, parts, torch_names, bare) for slot, arrays in resolved.slots.items()}
    groups = state_layout.groups_of(resolved, torch_names, bare)
    parameters = list(dict.fromkeys(chain.from_iterable(torch_names.values())))
    if strange := [name for name in resolved.stateless if name not in parameters]:
        raise WeightsError(f"metadata stateless: {describe(strange)}: the network has no such parameter")
    if resolved.groups is None:
        tensors = state_layout.without_fillers(tensors, groups, set(resolved.stateless))
    state_layout.complete(tensors, groups, parameters, _excused(resolved, torch_names, bare, parts, tensors, notes))
    notes += resolved.notes
    step = _steps(resolved.step, steps, notes)
    if wide := _wider(tensors, weights):
        notes.append(f"optimizer: {wide}: of a wider type than the parameter; PyTorch narrows it when it loads it")
    if groups is None and tensors:
        notes.append("the file does not hold the optimizer's options (lr and others): set them where you go on")
    flat = {f"{slot}/{name}": array for slot, arrays in tensors.items() for name, array in arrays.items()}
    return {STEP: np.array(step, np.int64), **flat}, groups


def _wider(tensors: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Any]) -> str:
    """The tensors whose type does not fit into the parameter's type."""
    pairs = (
        (f"{slot}/{name}", array.dtype, weights[name].dtype)
        for slot in tensors
        for name, array in tensors[slot].items()
    )
    return describe([key for key, own, other in pairs if lossless(np.empty(0, own), np.dtype(other)) is None])


def _moved(
    slot: str,
    arrays: Mapping[str, Any],
    found: Found,
    parts: splitting.Parts,
    torch_names: Mapping[str, tuple[str, ...]],
    bare: Mapping[str, str],
) -> dict[str, Array]:
    """One kind of the optimizer's tensors in the torch form.

    Args:
        torch_names: PyTorch names by the file's names; an array of stacked blocks has several.

    Raises:
        WeightsError: a tensor that does not match its parameter, or only a part of a tensor.
    """
    known: dict[str, Any] = {}
    problems: list[str] = []
    for name, array in arrays.items():
        raw = bare.get(name.removesuffix(".value"), name)
        if raw not in torch_names:
            problems.append(f"{slot}/{name}: the network has no such parameter")
        elif raw in known:
            problems.append(f"{slot}/{name}: is there twice, under another name too")
        elif tuple(array.shape) != tuple(parts.weights[raw].shape):
            problems.append(f"{slot}/{name}: got shape {array.shape}, expected {parts.weights[raw].shape}")
        known[raw] = array
    moved = {} if problems else found.read(known, parameters=True)
    parted = [] if problems else sorted({name for raw in known for name in torch_names[raw]} - moved.keys())
    problems += [f"{slot}/{name}: a part of it is missing" for name in parted]
    if problems:
        raise WeightsError(f"optimizer: {describe(problems)}; {WEIGHTS_ONLY}")
    return moved


def _excused(
    resolved: stored_states.Resolved,
    torch_names: Mapping[str, tuple[str, ...]],
    bare: Mapping[str, str],
    parts: splitting.Parts,
    tensors: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> set[str]:
    """The parameters that may have no state, because they never got a gradient."""
    parameters = {*chain.from_iterable(torch_names.values())}
    if resolved.groups is not None:  # PyTorch makes a parameter's state at its first gradient; Adagrad makes it at once
        row = of_groups(resolved.groups, resolved.slots)
        return set() if row is not None and row.eager else parameters
    excused = set(resolved.stateless)
    for begin in resolved.masked:
        masked = (raw for name, raw in bare.items() if f"{name}.".startswith(f"{begin}."))
        excused |= {*chain.from_iterable(torch_names[raw] for raw in masked)}
    if resolved.named and not parts.metadata:  # msgpack has no room for the record
        without = sorted(parameters - excused - {n for arrays in tensors.values() for n in arrays})
        excused |= set(without)
        if tensors and without:
            notes.append(f"optimizer: no tensors for {describe(without)}: taken as never having had a gradient")
    return excused


def _steps(found: int | None, given: int | None, notes: list[str]) -> int:
    if given is not None and found not in (None, whole_number(given, "steps")):
        raise WeightsError(f"steps: got {given}, the file says {found}")
    step = found if given is None else given
    if step is None:
        notes.append("the file does not say how many steps were done: 0 is taken; --steps N says it")
    return step or 0
