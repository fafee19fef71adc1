"""Converts one file into another: reads it, recognises it, brings it into the torch form, and writes the target's form.

    ports.weights.convert("resnet50.pth", "resnet50", to="nnx")       # an Orbax folder
    ports.weights.convert("resnet50", "back.safetensors")             # PyTorch's names and layouts

The source is never written to. Every source tensor is used once and every target tensor is set once, or nothing is
written. Types and bits stay the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ports.errors import printable
from ports.families import layers
from ports.family import Layer
from ports.frameworks import LAYOUTS
from ports.weights.checkpoints import state_layout
from ports.weights.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ports.weights.checkpoints.described import KEY
from ports.weights.checkpoints.splitting import check_names
from ports.weights.files import destination, formats
from ports.weights.files.atomic import publish
from ports.weights.files.formats import Content, Format
from ports.weights.form import lazy
from ports.weights.form.lazy import Array
from ports.weights.form.torch_form import WeightsError, describe
from ports.weights.known import fold
from ports.weights.known.dialects import STACKED, TARGET, TARGETS, DialectEntry, mapping
from ports.weights.optimizer import STEP
from ports.weights.rules.rulesfile import Rules, RulesFound

Leaves = dict[tuple[str, ...], Array]
# The metadata that a conversion writes itself. It keeps all other metadata of the source.
TOOL = "ports-parity"
OWN = {"source", "source_sha256", "layout", "tool", "network", "dialect"}
OWN |= {"folded", "counters", "optimizer", "stateless", KEY}
DEFAULT = {"msgpack": "linen", "orbax": "nnx"}


@dataclass
class Result:
    """What a conversion did."""

    source: Checkpoint
    path: Path
    format: str
    layout: str
    notes: list[str]


def convert(
    source: str | Path,
    path: str | Path,
    *,
    model: str | None = None,
    rules: Rules | None = None,
    to: str | None = None,
    source_format: str | None = None,
    format: str | None = None,
    key: str | None = None,
    weights_only: bool = False,
    steps: int | None = None,
    fold_batchnorm: bool = False,
    stacked: bool = False,
    shard_size: int | None = None,
    force: bool = False,
    max_memory: int | None = None,
    config: str | Path | None = None,
    verify: Callable[[Checkpoint, Path, str, Format], None] | None = None,
) -> Result:
    """Convert a file; the output appears whole or not at all.

    The output keeps the source's metadata (licence, author) if its format has room, except the names in `OWN`: there
    the conversion records where the output comes from. `format` follows the layout: `pt` or `flax`.

    Args:
        to: whose names and layouts the output has: `torch`, `nnx` or `linen`. By default Linen's in msgpack, NNX's in
            an Orbax folder, and PyTorch's otherwise.
        format: of the output, if its name does not show it; a name without a suffix is an Orbax folder.
        fold_batchnorm: for inference: each BatchNorm that follows a convolution becomes part of it.
        stacked: of a known decoder, for its Flax ports: each tensor of all blocks becomes one array, as
            `ports.create(…, stacked=True)` has it.
        shard_size: bytes a file; the output is a folder of safetensors.
        force: replace an existing output.
        verify: called with the source, the output (still under its temporary name), its layout and its format; it
            raises to refuse the output.
        model, rules, source_format, key, weights_only, steps, max_memory, config: as in `open_checkpoint`.

    Raises:
        WeightsError: nothing was written; the message says why.
    """
    source, path = Path(source), Path(path)
    row = target_format(path, format, shard_size)
    if rules is None:
        to = to or DEFAULT.get(row.name) or "torch"
    if to not in (*TARGETS, None):
        raise WeightsError(f"to: got {to!r}, expected one of {', '.join(TARGETS)}")
    place: dict[str, Any] = {"force": force, "foreign": formats.foreign(row), "name": _name(source, row)}
    destination.check(path, **place)
    held = open_checkpoint(
        source,
        format=source_format,
        model=model,
        rules=rules,
        key=key,
        weights_only=weights_only,
        steps=steps,
        bare=to == "torch",
        max_memory=max_memory,
        config=config,
    )
    assert held.source is not None
    destination.apart(path, held.source)
    described = held.found.described if held.found is not None else None
    notes = list(held.notes)
    if to is None:
        to = held.found.other if isinstance(held.found, RulesFound) else "torch"
    weights, rows = held.weights, _rows(held, rules, to, fold_batchnorm)
    if stacked:
        rows = _stacked_rows(held, rules, to)
    if fold_batchnorm:
        weights, count = fold.fold(weights, _layers(held))
        notes.append(f"{count} BatchNorms folded into their convolutions: for inference alone")
        if held.optimizer is not None:
            raise WeightsError("--fold-batchnorm: the file holds the state of an optimizer; add --weights-only")
    if rules is not None and to == "torch" and held.optimizer is not None and not held.options:
        notes.append("torch.optim goes by number: the parameters are numbered in the order of the rules (param_names)")
    if not held.metadata.get("tool", "").startswith(TOOL) and (lost := [name for name in held.metadata if name in OWN]):
        notes.append(f"left out of what the source says of itself: {describe(lost)}; a conversion has its own there")
    about = _metadata(source, held, to, rows, fold_batchnorm)
    tree = _tree(weights, held, rows, to, row, about)
    if row.name == "msgpack" and (kept := [name for name in about if name not in OWN]):
        notes.append(f"msgpack has no room for what the source says of itself: {describe(kept)}")
    if described is not None and (difference := described.difference(LAYOUTS[to].name, **_options(stacked))):
        notes.append(difference)
        if row.name == "msgpack":
            notes.append("msgpack has no room for what config.json says: keep it for the way back (--config FILE)")
    if about and row.name == "msgpack" and held.optimizer is not None:
        notes.append("msgpack has no room for the optimizer's options, nor for which parameters never got a gradient")
    with publish(path, **place) as partial:
        options = {"shard_size": shard_size} if row.name == "sharded" else {}
        formats.write(partial, Content(tree, about), row, **options)
        if verify is not None:
            verify(held, partial, to, row)
        held.source.unchanged()
    return Result(held, path, row.name, to, notes)


def _options(stacked: bool) -> dict[str, bool]:
    """Return the fields of the description that the output's form asks for."""
    return {"stacked": True} if stacked else {}


def _name(source: Path, row: Format) -> str:
    """Return a name for the output within a folder."""
    return f"{source.absolute().name.partition('.')[0] or 'weights'}{''.join(row.suffixes[:1])}"


def target_format(path: Path, name: str | None, shard_size: int | None = None) -> Format:
    """The format of an output."""
    if shard_size is not None:
        if shard_size < 1 or name not in (None, "safetensors", "sharded"):
            raise WeightsError(
                f"--shard-size: got {shard_size} bytes with format {name}, expected safetensors and 1 or more"
            )
        name = "sharded"
    if name is None and path.suffix.lower() not in formats.SUFFIXES and not path.name.endswith(formats.INDEX):
        if path.suffix and not os.path.isdir(path):  # noqa: PTH112 - False for a name that no file can have
            return formats.of(path)
        name = "orbax"
    row = formats.of(path, name)
    if path.name.endswith(formats.INDEX):
        raise WeightsError(f"output {path}: shards are written into a folder; name the folder, with --shard-size")
    return row


def _layers(held: Checkpoint) -> list[Layer]:
    if held.found is None or held.found.spec is None:
        raise WeightsError("--fold-batchnorm: needs a network that is known (--model)")
    return layers(held.found.spec)


def _rows(held: Checkpoint, rules: Rules | None, to: str, folded: bool) -> list[DialectEntry] | None:
    """Where the output keeps each tensor; None if names stay as they are."""
    if held.found is None:
        return None
    if rules is not None:
        assert isinstance(held.found, RulesFound)
        return rules.target_rows(held.found, to)
    if folded:
        return mapping(fold.folded(_layers(held)), TARGET[to])
    assert held.found.spec is not None
    return mapping(held.found.spec, TARGET[to])


def _stacked_rows(held: Checkpoint, rules: Rules | None, to: str) -> list[DialectEntry]:
    """Where the output keeps each tensor, with the blocks stacked."""
    if rules is not None or held.found is None or held.found.spec is None:
        raise WeightsError("--stacked: needs a network that is known (--model); [[tensor]] rules stack your own")
    if to not in STACKED:
        raise WeightsError(f"--stacked: got --to {to}, expected one of {', '.join(STACKED)}")
    rows = mapping(held.found.spec, STACKED[to])
    if not any(entry.stack for entry in rows):
        raise WeightsError(f"--stacked: {held.found.network} has no blocks that its ports stack")
    return rows


def _leaves(weights: Mapping[str, Array], rows: Iterable[DialectEntry], parameters: bool = False) -> Leaves:
    """The output's arrays by their paths."""
    leaves: Leaves = {}
    stacks: dict[tuple[str, ...], list[tuple[DialectEntry, int]]] = {}
    for entry in rows:
        if parameters and (not entry.parameter or entry.torch not in weights):
            continue
        if entry.stack:
            for i, at in enumerate(entry.paths):
                stacks.setdefault(at, []).append((entry, i))
            continue
        for at, array in zip(entry.paths, entry.from_torch(weights[entry.torch]), strict=True):
            if at in leaves and entry.tied:  # `Found.read` and `ports.weights.read` give the same array under two names
                continue
            if at in leaves:
                raise WeightsError(f"{'.'.join(at)}: is set twice, the second time by {entry.torch}")
            leaves[at] = array
    return leaves | {at: _stacked(weights, parts) for at, parts in stacks.items()}


def _stacked(weights: Mapping[str, Array], parts: Sequence[tuple[DialectEntry, int]]) -> Array:
    """Return the array of all blocks."""
    stacks = {entry.stack.number: (entry.stack.leaf, entry.torch, i) for entry, i in parts if entry.stack}
    rows = [stacks[number] for number in sorted(stacks)]

    def stack(arrays: tuple[Any, ...]) -> list[np.ndarray]:
        return [np.stack([leaf.to_flax(a)[i] for (leaf, _, i), a in zip(rows, arrays, strict=True)])]

    return lazy.mapped(stack, [weights[name] for _, name, _ in rows])[0]


def _tree(
    weights: Mapping[str, Array],
    held: Checkpoint,
    rows: Sequence[DialectEntry] | None,
    to: str,
    row: Format,
    about: dict[str, str],
) -> formats.Tree:
    """The whole output, in the structure of its format."""
    leaves: Leaves = {(name,): array for name, array in weights.items()} if rows is None else _leaves(weights, rows)
    check_names(map(".".join, leaves), row)
    if rows is None:
        return dict(weights)
    if held.optimizer is None:
        return formats.nested(leaves.items()) if row.nested else {".".join(at): a for at, a in leaves.items()}
    trees, step = _state_trees(held, rows, to, about), int(held.optimizer[STEP])
    if not row.nested:
        return {".".join(at): a for at, a in leaves.items()} | state_layout.flat_state(trees, step)
    whole = formats.nested(leaves.items())
    if to == "torch" and row.name == "torch":
        parameters = [entry.torch for entry in rows if entry.parameter]
        state = state_layout.torch_state(held.optimizer, parameters, held.options)
        return {"model": whole, "optimizer": state, STEP: step}
    if to == "torch":
        slots = {slot: formats.nested(tree.items()) for slot, tree in trees.items()}
        return {"model": whole, "optimizer": {STEP: np.array(step, np.int64), **slots}}
    state = state_layout.optax_state(trees, step)
    if LAYOUTS[to].collections:
        return {**whole, "opt_state": state, STEP: state["count"]}
    return {"model": whole, "opt_state": state}


def _state_trees(held: Checkpoint, rows: Sequence[DialectEntry], to: str, about: dict[str, str]) -> dict[str, Leaves]:
    """The optimizer's tensors by their paths; a parameter that never got a gradient has zeros in Flax."""
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, array in (held.optimizer or {}).items():
        if key != STEP:
            slot, _, name = key.partition("/")
            slots.setdefault(slot, {})[name] = array
    parameters = {entry.torch for entry in rows if entry.parameter}
    given = {name for arrays in slots.values() for name in arrays}
    if slots and (without := sorted(parameters - given)):
        about["stateless"] = json.dumps(without)
    if to != "torch":
        for arrays in slots.values():
            for name in parameters - set(arrays):
                arrays[name] = np.zeros(held.weights[name].shape, held.weights[name].dtype)
    trees = {slot: _leaves(arrays, rows, parameters=True) for slot, arrays in slots.items()}
    if LAYOUTS[to].collections:
        trees = {slot: {at[1:]: array for at, array in tree.items()} for slot, tree in trees.items()}
    return trees


def _metadata(
    source: Path, held: Checkpoint, to: str, rows: Sequence[DialectEntry] | None, folded: bool
) -> dict[str, str]:
    """Metadata: where the output comes from, and the source's own metadata (licence, author).

    Nothing in it depends on when or where it is made.
    """
    assert held.source is not None
    about = {name: text for name, text in held.metadata.items() if name not in OWN}
    if "format" in about:  # whose names and layouts they are, in the words of Hugging Face's libraries
        about["format"] = "pt" if to == "torch" else "flax"
    about |= {
        "source": printable(source.name),  # the name of a file need not be text
        "source_sha256": held.source.sha256(),
        "layout": to,
        "tool": f"{TOOL} {importlib.metadata.version(TOOL)}",
    }
    if held.found is not None:
        about |= {"network": held.found.label, "dialect": held.found.dialect}
        if held.found.described is not None:
            about[KEY] = json.dumps(held.found.described.keys, sort_keys=True)
    if folded:
        about["folded"] = "batchnorm"
    if rows is not None and (lost := set(held.weights) - {entry.torch for entry in rows}) and not folded:
        about["counters"] = json.dumps({name: state_layout.counter(name, held.weights[name]) for name in sorted(lost)})
    if held.options:
        about["optimizer"] = json.dumps(held.options, sort_keys=True)
    return about


def summary(result: Result) -> list[str]:
    """Return a summary for a person."""
    held = result.source
    network = f"{held.found.label or 'own network'} ({held.found.dialect})" if held.found else "network not recognised"
    tensors = f"{len(held.weights)} tensors, {sum(a.nbytes for a in held.weights.values()):,} bytes"
    lines = [f"{network}: {tensors}", f"written {result.path} ({result.format}, {result.layout})"]
    if held.optimizer is not None:
        slots = dict.fromkeys(name.partition("/")[0] for name in held.optimizer if name != STEP)
        lines.insert(1, f"optimizer: {describe(slots)} after {int(held.optimizer[STEP])} steps")
    return lines
