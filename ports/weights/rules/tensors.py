"""Rows of a rules file that say tensor by tensor how two models hold the same numbers.

    [[tensor]]
    torch = ["h.0.attn.q.weight", "h.0.attn.k.weight"]
    flax = ["blocks.qk.kernel"]
    gather = "stack"                  # several tensors of PyTorch's: stack, or concatenate
    shape = [2, 8, 8]                 # of the one array
    transpose = [0, 2, 1]             # then, where they are needed: cut, transpose, flip, reshape

`spread` is the same for several variables of Flax's: unstack, or split. Arrays of unequal sizes are concatenated or
split; `gather_sizes` and `spread_sizes` are their lengths along the first axis. Where arrays must be brought into
another layout before they make one, the same steps have one list for each array: `spread_cut = [[4, 8, 32], …]`.

`parity pairs --write` writes them from a pair that was proved, and `parity convert --rules` reads them. A row without
`flax` keeps a counter of BatchNorm's, for which Flax has no variable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ports.family import Shape
from ports.weights.form.rearrangement import Gathering, Layout, Rearrangement
from ports.weights.known.dialects import DialectEntry
from ports.weights.layers.leaves import COUNTER, Leaf

GATHER, SPREAD = ("stack", "concatenate"), ("unstack", "split")
STEPS = ("shape", "cut", "transpose", "reshape", "flip")  # of a layout
SIDES = {"gather": GATHER, "spread": SPREAD}
LISTS = {"torch": str, "flax": str} | dict.fromkeys(STEPS, int)
LISTS |= {f"{side}_{what}": int for side in SIDES for what in ("sizes", "order")}
NESTED = tuple(f"{side}_{step}" for side in SIDES for step in STEPS)
KEYS = (*LISTS, *NESTED, *SIDES, "trained")


@dataclass(frozen=True)
class TensorRow:
    """Tensors of PyTorch's and variables of Flax's that hold the same numbers.

    Attributes:
        torch: PyTorch's names.
        flax: Flax's, Linen's with their collection in front; none for a counter that only PyTorch has.
        form: how the ones become the others.
        trained: whether they are parameters.
    """

    torch: tuple[str, ...]
    flax: tuple[str, ...]
    form: Rearrangement
    trained: bool = True

    @property
    def key(self) -> str:
        """What a conversion calls the one array."""
        return "+".join(self.torch)

    def names(self, style: str) -> tuple[str, ...]:
        """Return the names on one side."""
        return self.torch if style == "torch" else self.flax

    def entry(self, style: str) -> DialectEntry:
        """Return where a file of one side keeps the one array."""
        paths = tuple((name,) if style == "torch" else tuple(name.split(".")) for name in self.names(style))
        if not self.flax:
            return DialectEntry(self.key, (), Leaf(COUNTER, ()), ((self.torch[0],),), False)
        form = self.form
        leaf = (
            Leaf(self.key, self.torch, form.parted, form.joined)
            if style == "torch"
            else Leaf(self.key, self.flax, form.spread, form.collected)
        )
        return DialectEntry(self.key, form.layout.shape, leaf, paths, self.trained)

    def toml(self) -> str:
        """Return the row as a file holds it."""
        form, lines = self.form, [("torch", [*self.torch]), ("flax", [*self.flax])]
        lines += _gathering_lines("gather", form.gathering)
        lines += [(step, value) for step, value, needed in _steps(form.layout) if needed] if self.flax else []
        lines += _gathering_lines("spread", form.spreading)
        lines += [] if self.trained else [("trained", False)]
        return "\n".join(["[[tensor]]", *(f"{name} = {json.dumps(value)}" for name, value in lines)])


def _steps(layout: Layout) -> list[tuple[str, list[int], bool]]:
    """Return the steps of a layout, and whether a row must say each."""
    values = (layout.old, layout.fine, layout.order, layout.shape, layout.flip)
    moved = tuple(layout.fine[i] for i in layout.order)
    plain = (None, layout.old, tuple(range(len(layout.order))), moved, ())
    return [(step, [*value], value != same) for step, value, same in zip(STEPS, values, plain, strict=True)]


def _gathering_lines(side: str, gathering: Gathering | None) -> list[tuple[str, Any]]:
    if gathering is None:
        return []
    lines: list[tuple[str, Any]] = [(side, SIDES[side][not gathering.stacked])]
    lines += [(f"{side}_order", [*gathering.order])]
    lines += [] if gathering.stacked else [(f"{side}_sizes", [*gathering.sizes])]
    for of_each in zip(*map(_steps, gathering.layouts), strict=True):
        if any(needed for _, _, needed in of_each):
            lines.append((f"{side}_{of_each[0][0]}", [value for _, value, _ in of_each]))
    return lines


def parsed(row: Mapping[str, Any]) -> TensorRow | list[str]:
    """Return a row of a file, or all that is wrong with it."""
    wrong = [f"unknown key {key!r}" for key in row if key not in KEYS]
    for key, kind in LISTS.items():
        value = row.get(key, [])
        fits = isinstance(value, list) and all(type(one) is kind for one in value)
        if not fits or (kind is int and any(n < 0 for n in value)):
            wrong.append(f"{key}: got {value!r}, expected a list of {'names' if kind is str else 'numbers from 0'}")
    for key in NESTED:
        value = row.get(key, [])
        lists = value if isinstance(value, list) else [value]
        if not all(isinstance(one, list) and all(type(n) is int and n >= 0 for n in one) for one in lists):
            wrong.append(f"{key}: got {value!r}, expected a list of numbers from 0 for each name")
    for key, allowed in SIDES.items():
        if key in row and row[key] not in allowed:
            wrong.append(f"{key}: got {row[key]!r}, expected {' or '.join(allowed)}")
    if type(row.get("trained", True)) is not bool:
        wrong.append(f"trained: got {row['trained']!r}, expected true or false")
    if wrong or not row.get("torch"):
        return wrong or ["no torch"]
    torch, flax = tuple(row["torch"]), tuple(row.get("flax", ()))
    for side, names, word in (("torch", torch, "gather"), ("flax", flax, "spread")):
        if (len(names) > 1) != (word in row):
            needed = f"{word}: {' or '.join(SIDES[word])}" if len(names) > 1 else f"no {word}"
            wrong.append(f"{side}: {len(names)} names need {needed}")
    if not flax and any(not name.endswith(COUNTER) for name in torch):
        wrong.append(f"flax: got no name; expected one, but for {COUNTER}")
    layout = _layout(row, wrong)
    gathering = _gathering(row, "gather", len(torch), layout.old, wrong)
    spreading = _gathering(row, "spread", len(flax), layout.shape, wrong)
    return wrong or TensorRow(torch, flax, Rearrangement(layout, gathering, spreading), row.get("trained", True))


def _layout(row: Mapping[str, Any], wrong: list[str]) -> Layout:
    old = tuple(row.get("shape", ()))
    fine = tuple(row.get("cut", old))
    order = tuple(row.get("transpose", range(len(fine))))
    if sorted(order) != [*range(len(fine))]:
        wrong.append(f"transpose: got {[*order]}, expected each of 0 to {len(fine) - 1} once")
        order = tuple(range(len(fine)))
    shape = tuple(row.get("reshape", (fine[i] for i in order)))
    flip = tuple(row.get("flip", ()))
    if any(axis >= len(shape) for axis in flip):
        wrong.append(f"flip: got {[*flip]}, expected axes of {shape}")
    if len({math.prod(old), math.prod(fine), math.prod(shape)}) > 1:
        wrong.append(f"shape {old}, cut {fine} and reshape {shape} hold different numbers of elements")
    return Layout(fine, order, shape, old, flip)


def _gathering(row: Mapping[str, Any], word: str, count: int, shape: Shape, wrong: list[str]) -> Gathering | None:
    if word not in row:
        return None
    stacked = row[word] in ("stack", "unstack")
    sizes = (1,) * count if stacked else tuple(row.get(f"{word}_sizes", ()))
    order = tuple(row.get(f"{word}_order", range(count)))
    if sorted(order) != [*range(count)]:
        wrong.append(f"{word}_order: got {[*order]}, expected each of 0 to {count - 1} once")
    if len(sizes) != count or sum(sizes) != (shape or (0,))[0]:
        wrong.append(f"{word}: {count} parts of {[*sizes]} make no axis of {(shape or (0,))[0]}")
    parts = [shape[1:] if stacked else (size, *shape[1:]) for size in sizes]
    return Gathering(sizes, stacked, order, _layouts(row, word, parts, wrong))


def _layouts(row: Mapping[str, Any], word: str, parts: Sequence[Shape], wrong: list[str]) -> tuple[Layout, ...]:
    """Return the layout of each array, which makes its part; none where they stay as they are."""
    said = {step: row[f"{word}_{step}"] for step in STEPS if f"{word}_{step}" in row}
    uneven = [f"{word}_{step}" for step, lists in said.items() if len(lists) != len(parts)]
    wrong += [f"{key}: got {len(row[key])} lists, expected {len(parts)}, one for each name" for key in uneven]
    if uneven or not said:
        return ()
    found = []
    for i, part in enumerate(parts):
        own: list[str] = []
        layout = _layout({step: lists[i] for step, lists in said.items()}, own)
        if not own and layout.shape != part:
            own.append(f"got a part of shape {layout.shape}, expected {part}")
        wrong += [f"{word} {i + 1}: {text}" for text in own]
        found.append(layout)
    return tuple(found)


def entries(
    rows: Sequence[TensorRow], style: str, present: Mapping[str, Shape]
) -> tuple[list[DialectEntry], list[str]]:
    """Return where a file keeps the tensors of all rows, and what is wrong with it."""
    found, problems = [], []
    for row in rows:
        entry = row.entry(style)
        missing = [name for name in row.names(style) if name not in present]
        if missing and row.flax:
            problems += [f"{name}: a rule names it, and it is not there" for name in missing]
            continue
        found.append(entry)
        if row.flax:
            shapes = zip(row.names(style), entry.shapes, strict=True)
            problems += [
                f"{name}: got shape {present[name]}, expected {shape}"
                for name, shape in shapes
                if present[name] != shape
            ]
    return found, problems
