"""A first draft of rules from one file to another (`parity inspect --rules A B`), to be edited.

Layers are paired by equal names, then by shapes that one layer alone has, then by order among equal shapes; what rests
on order says so, and what has no counterpart stands in a comment.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ports.errors import printable
from ports.family import Shape
from ports.weights.known.names import in_flax, normal

ALIKE = ("linear", "embedding")  # PyTorch's names do not tell one from the other


@dataclass
class Layer:
    """A layer as the names and shapes of its tensors show it."""

    name: str
    type: str
    shape: Shape
    heads: int | None = None

    @property
    def plain(self) -> str:
        return re.sub(r"[._]|layers", "", self.name).lower()


def draft(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> str:
    """The text of a file of rules."""
    (source, mine), (target, theirs) = _layers(left), _layers(right)
    pairs: list[tuple[Layer, Layer, str]] = []
    tests = ((lambda x: x.plain, ALIKE), (lambda x: (x.type, x.shape), ()))
    for test, alike in tests:
        groups: dict[object, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
        for side, layers in enumerate((mine, theirs)):
            for layer in layers:
                groups[test(layer)][side].append(layer)
        for ours, others in groups.values():
            if len(ours) == len(others) == 1 and ours[0].shape == others[0].shape:
                types = (ours[0].type, others[0].type)
                if types[0] == types[1] or set(types) <= set(alike):
                    ours[0].type = types[1] if source == "torch" else types[0]  # Flax's names tell it
                    pairs.append((ours[0], others[0], ""))
        mine, theirs = _left(mine, theirs, pairs)
    groups = defaultdict(lambda: ([], []))
    for side, layers in enumerate((mine, theirs)):
        for layer in layers:
            groups[(layer.type, layer.shape)][side].append(layer)
    for ours, others in groups.values():
        if len(ours) == len(others):
            pairs += [(a, b, "by order among equal shapes") for a, b in zip(ours, others, strict=True)]
    mine, theirs = _left(mine, theirs, pairs)
    lines = [f'source = "{source}"', f'target = "{target}"']
    heads = {kind.heads for pair in pairs for kind in pair[:2] if kind.heads}
    for (a, b, kind), why in _collapsed(pairs).items():
        lines += [
            "",
            "[[layer]]" + (f"  # check: {why}" if why else ""),
            f"source = {_quoted(a)}",
            f"target = {_quoted(b)}",
            f'type = "{kind}"',
            *(f"heads = {n}" for n in sorted(heads) if kind == "attention"),
        ]
    for side, layers in (("source", mine), ("target", theirs)):
        lines += (
            ["", *(f"# {side} {printable(x.name)} {x.shape} ({x.type}): no counterpart found" for x in layers)]
            if layers
            else []
        )
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    """A string of TOML: other characters than those that can be seen are written by their numbers."""
    signs = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(signs.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in name) + '"'


def _left(mine: list[Layer], theirs: list[Layer], pairs: list) -> tuple[list[Layer], list[Layer]]:
    ours, others = {id(a) for a, _, _ in pairs}, {id(b) for _, b, _ in pairs}
    return [x for x in mine if id(x) not in ours], [x for x in theirs if id(x) not in others]


def _layers(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[Layer]]:
    """The side's style, and its layers; shapes are PyTorch's."""
    names = {n: tensors[raw].shape for n, raw in normal({n: a.shape for n, a in tensors.items()}).items()}
    style = "torch"
    if in_flax(names):
        style = "linen" if all(name.startswith(("params.", "batch_stats.")) for name in names) else "nnx"
    bare = {name.partition(".")[2] if style == "linen" else name: shape for name, shape in names.items()}
    found = [layer for name in bare if (layer := _attention(name, bare)) is not None]
    taken = {layer.name for layer in found}
    lengths = {len(name) for name in taken}
    grouped: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in bare.items():
        layer, _, leaf = name.rpartition(".")
        if not any(name[at : at + 1] == "." and name[:at] in taken for at in lengths):
            grouped[layer or name][leaf if layer else ""] = shape
    return style, found + [layer for name, leaves in grouped.items() for layer in _typed(name, leaves, style)]


def _attention(name: str, tensors: Mapping[str, Shape]) -> Layer | None:
    """The attention that a tensor is the first of: PyTorch packs three into one, Flax has the number of heads."""
    if name.endswith(".in_proj_weight"):
        return Layer(name.rpartition(".")[0], "attention", (tensors[name][1],))
    base = name.removesuffix(".query.kernel")
    if base != name and f"{base}.out.kernel" in tensors and len(tensors[name]) == 3:
        return Layer(base, "attention", tensors[name][:1], heads=tensors[name][1])
    return None


def _typed(name: str, leaves: dict[str, Shape], style: str) -> list[Layer]:
    weight = leaves.get("weight" if style == "torch" else "kernel")
    if "running_mean" in leaves or "mean" in leaves:
        return [Layer(name, "batch_norm", leaves.get("running_mean", leaves.get("mean", ())))]
    if "embedding" in leaves:
        return [Layer(name, "embedding", leaves["embedding"])]
    if weight is None and "scale" in leaves:
        return [Layer(name, "layer_norm", leaves["scale"])]
    if weight is not None and set(leaves) <= {"weight", "kernel", "bias"}:
        if len(weight) == 1:
            return [Layer(name, "layer_norm", weight)]
        if style != "torch":
            weight = (weight[-1], weight[-2], *weight[:-2])
        return [Layer(name, "linear" if len(weight) == 2 else "conv", weight)]
    return [Layer(f"{name}.{leaf}" if leaf else name, "tensor", shape) for leaf, shape in leaves.items()]


def _collapsed(pairs: list[tuple[Layer, Layer, str]]) -> dict[tuple[str, str, str], str]:
    """Rows; those that differ in numbers alone are one, where the numbers of both sides are the same."""
    rows: dict[tuple[str, str, str], str] = {}
    for a, b, why in pairs:
        parts = [[p for p in x.name.split(".") if p.isdigit()] for x in (a, b)]
        key = (a.name, b.name, a.type)
        if parts[0] and parts[0] == parts[1]:
            key = (*(".".join("{}" if p.isdigit() else p for p in x.name.split(".")) for x in (a, b)), a.type)
        rows[key] = rows.get(key) or why  # pyright: ignore[reportArgumentType]
    return rows
