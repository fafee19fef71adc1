"""Rules for anybody's own network, in a short TOML file: which layer is which, and of what type.

    source = "torch"                          # whose names stand left: torch, nnx or linen
    target = "nnx"

    [[layer]]
    source = "encoder.layers.{}.linear1"      # each {} is one part of a name, and is put in again
    target = "blocks.{}.up"
    type = "linear"                           # see TYPES; attention takes heads = 8

    [[ignore]]
    pattern = "*.position_ids"
    why = "computed, not learned"

`{0}` and `{1}` change the order. `[[tensor]]` says it tensor by tensor (`rules.tensors`), and `[names]` tells the check
which layer is which. One file serves both directions: it is read from the side that fits the file. `draft`
writes a first one to be edited.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ports.family import Shape
from ports.frameworks import LAYOUTS
from ports.weights.form.near import SUGGESTIONS, closest
from ports.weights.form.torch_form import WeightsError, _matches, describe
from ports.weights.known.dialects import TARGETS, DialectEntry
from ports.weights.known.names import normal
from ports.weights.known.recognise import Found
from ports.weights.layers.kinds import KINDS
from ports.weights.layers.leaves import COUNTER, Leaf
from ports.weights.rules import tensors as tensor_rows
from ports.weights.rules.patterns import Names, misplaced, parse
from ports.weights.rules.tensors import TensorRow

KEYS = ("source", "target", "layer", "tensor", "ignore", "names")
TYPES = {name: row for name, row in KINDS.items() if row.options is not None}
OPTIONS = {option.name for row in TYPES.values() for option in row.options or ()}


@dataclass(frozen=True)
class FileRow:
    """One `[[layer]]`."""

    source: str
    target: str
    type: str
    options: Mapping[str, Any]

    def leaves(self) -> tuple[Leaf, ...]:
        return TYPES[self.type].leaves_for(self.options)


@dataclass
class RulesFound(Found):
    """A file understood by rules: where it keeps each tensor, and where the other side does."""

    style: str = "torch"
    other: str = "nnx"
    others: list[DialectEntry] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """A whole file of rules."""

    name: str
    source: str
    target: str
    rows: tuple[FileRow, ...]
    ignores: tuple[tuple[str, str], ...] = ()
    tensors: tuple[TensorRow, ...] = ()
    names: Mapping[str, str | None] = field(default_factory=dict)

    def found(self, shapes: Mapping[str, Shape]) -> RulesFound:
        """What of a file is what.

        Raises:
            WeightsError: all problems at once: tensors without a rule, rules without a tensor, tensors taken twice.
        """
        plain = normal(shapes)
        tensors = {name: shapes[raw] for name, raw in plain.items()}
        sides = [(self.source, self.target, False), (self.target, self.source, True)]
        tried = [self._side(tensors, *side) for side in sides]
        (found, problems) = min(tried, key=lambda one: (bool(one[1]), -len(one[0].entries)))
        if problems:
            raise WeightsError([f"rules {self.name}: {problem}" for problem in problems])
        found.raw = plain
        return found

    def _side(
        self, tensors: Mapping[str, Shape], style: str, other: str, reverse: bool
    ) -> tuple[RulesFound, list[str]]:
        found = RulesFound("", None, f"rules {self.name}", [], {}, style=style, other=other)
        taken: dict[str, str] = {}
        problems: list[str] = []
        targets: dict[tuple[str, ...], str] = {}
        ignored = {n: why for n in tensors for pattern, why in self.ignores if _matches(n, pattern)}
        self._by_tensor(tensors, found, problems, taken)
        patterns = [row.target if reverse else row.source for row in self.rows]
        index = Names(_bare(tensors, style), max((pattern.count(".") for pattern in patterns), default=0) + 1)
        for row in self.rows:
            mine, theirs = (row.target, row.source) if reverse else (row.source, row.target)
            layers = _layers(index, mine, row, style)
            if not layers:
                problems.append(f"{mine} ({row.type}): matches nothing")
            for layer, parts in layers.items():
                for leaf in row.leaves():
                    entry = _entry(tensors, layer, leaf, style)
                    if entry is None and leaf.torch == COUNTER and {style, other} - {"torch"} == {style}:
                        found.entries += (own := _counter(layer, theirs.format(*parts), leaf, style))
                        found.others += [replace(e, leaf=Leaf(COUNTER, ()), paths=((e.torch,),)) for e in own]
                    if entry is None or any(name in ignored for name in entry.names):
                        continue
                    for name in entry.names:
                        if name in taken:
                            problems.append(f"{name}: taken by two rules, {taken[name]} and {mine}")
                        taken[name] = mine
                    base = theirs.format(*parts)
                    torch_name = _joined(base if reverse and other == "torch" else layer, leaf.torch)
                    paths = _paths(base, leaf, other)
                    found.entries.append(
                        DialectEntry(torch_name, entry.shape, entry.leaf, entry.paths, entry.parameter)
                    )
                    if leaf.torch == COUNTER and other != "torch":
                        continue
                    for at in paths:
                        if at in targets:
                            problems.append(f"{'.'.join(at)}: set twice, by {targets[at]} and {layer}")
                        targets[at] = layer
                    kept = Leaf(leaf.torch, ()) if other == "torch" else leaf
                    found.others.append(DialectEntry(torch_name, entry.shape, kept, paths, entry.parameter))
        left = {name: shape for name, shape in tensors.items() if name not in taken and name not in ignored}
        for i, (name, shape) in enumerate(left.items()):
            near = closest(name.rpartition(".")[0], patterns, 0.6) if i < SUGGESTIONS else None
            hint = f"; nearest: {near}" if near else ""
            problems.append(f"{name} {shape}: no rule takes it, no [[ignore]] names it{hint}")
        for pattern, why in self.ignores:
            if not reverse and not any(_matches(name, pattern) for name in tensors):
                problems.append(f"ignore {pattern!r}: matches nothing ({why})")
        reasons: dict[str, list[str]] = {}
        for name, why in ignored.items():
            reasons.setdefault(why, []).append(name)
        found.notes += [f"{describe(names)}: left out ({why})" for why, names in reasons.items()]
        return found, problems

    def _by_tensor(
        self, tensors: Mapping[str, Shape], found: RulesFound, problems: list[str], taken: dict[str, str]
    ) -> None:
        """Take what rows of tensors say."""
        rows, wrong = tensor_rows.entries(self.tensors, found.style, tensors)
        problems += wrong
        found.entries += rows
        for row in self.tensors:
            if row.flax or found.other == "torch":
                found.others.append(row.entry(found.other))
            for name in row.names(found.style):
                if name in taken:
                    problems.append(f"{name}: taken by two rules")
                taken[name] = name

    def target_rows(self, found: RulesFound, to: str) -> list[DialectEntry]:
        """Where an output keeps each tensor.

        Raises:
            WeightsError: the rules have no such side.
        """
        if to == found.style:
            return found.entries
        if to == found.other:
            return found.others
        raise WeightsError(f"rules {self.name}: are between {self.source} and {self.target}; got --to {to}")


def _counter(layer: str, base: str, leaf: Leaf, style: str) -> list[DialectEntry]:
    """BatchNorm's counter, for which stock Flax has no variable: from the metadata, or 0."""
    return [DialectEntry(_joined(base, leaf.torch), (), leaf, _paths(layer, leaf, style), False)]


def _joined(base: str, leaf: str) -> str:
    return f"{base}.{leaf}" if leaf else base


def _paths(base: str, leaf: Leaf, style: str) -> tuple[tuple[str, ...], ...]:
    if style == "torch":
        return ((_joined(base, leaf.torch),),)
    names = [tuple(_joined(base, name).split(".")) for name in leaf.flax]
    return tuple((leaf.collection, *name) if LAYOUTS[style].collections else name for name in names)


def _layers(names: Names, pattern: str, row: FileRow, style: str) -> dict[str, tuple[str, ...]]:
    """The layers that a row takes, each with the parts of its name that stand in the holes."""
    names_of = ((leaf.torch,) if style == "torch" else leaf.flax for leaf in row.leaves())
    ends = {f".{end}" if end else "" for each in names_of for end in each}
    return {layer: holes for layer, end, holes in names.starting(parse(pattern)) if end in ends}


def _bare(tensors: Mapping[str, Shape], style: str) -> list[str]:
    """The names as patterns have them: without their collection."""
    if not (collections := LAYOUTS[style].collections):
        return list(tensors)
    return [bare for at, _, bare in (name.partition(".") for name in tensors) if at in collections]


def _entry(tensors: Mapping[str, Shape], layer: str, leaf: Leaf, style: str) -> DialectEntry | None:
    """One tensor of a layer, where the file has it."""
    kept = Leaf(leaf.torch, ()) if style == "torch" else leaf
    paths = _paths(layer, leaf, style)
    names = [".".join(at) for at in paths]
    if not names or not all(name in tensors for name in names):
        return None
    shape = kept.to_torch(tuple(np.broadcast_to(np.int8(0), tensors[name]) for name in names)).shape
    return DialectEntry("", shape, kept, paths, leaf.collection == "params")


def load(path: Path) -> Rules:
    """Read a file of rules for a conversion.

    Raises:
        WeightsError: it cannot be read, or all that is wrong in it.
    """
    rules = _read(path)
    if not rules.rows and not rules.tensors:
        more = ": [names] alone converts nothing" if rules.names else ""
        raise WeightsError([f"rules {path}: no [[layer]], and no [[tensor]]{more}"])
    return rules


def names(path: Path) -> dict[str, str | None]:
    """Read what a file says to the check of which layer is which. It needs no rules besides.

    Raises:
        WeightsError: it cannot be read, or all that is wrong in it.
    """
    return dict(_read(path).names)


def _read(path: Path) -> Rules:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"rules {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"rules {path}: invalid TOML: {error}") from None
    except RecursionError:
        raise WeightsError(f"rules {path}: invalid TOML: it is nested too deeply") from None
    problems = [f"unknown key {key!r}; expected {', '.join(KEYS)}" for key in content if key not in KEYS]
    source, target = content.get("source", "torch"), content.get("target", "nnx")
    sides = {"source": source, "target": target}
    expected = ", ".join(TARGETS)
    problems += [f"{k}: got {v!r}, expected one of {expected}" for k, v in sides.items() if v not in TARGETS]
    rows = []
    for i, row in enumerate(_tables(content, "layer", problems), 1):
        wrong = _wrong(row)
        problems += [f"[[layer]] {i}: {text}" for text in wrong]
        if not wrong:
            options = {key: value for key, value in row.items() if key in OPTIONS}
            rows.append(FileRow(row["source"], row["target"], row["type"], options))
    tensors = []
    for i, row in enumerate(_tables(content, "tensor", problems), 1):
        made = tensor_rows.parsed(row)
        if isinstance(made, TensorRow):
            tensors.append(made)
        else:
            problems += [f"[[tensor]] {i}: {text}" for text in made]
    said = content.get("names", {})
    if not isinstance(said, dict) or not all(isinstance(v, str) for v in said.values()):
        problems.append("names: expected [names], a name of Flax's for each of PyTorch's, all of them in quotes")
    ignores = []
    for i, row in enumerate(_tables(content, "ignore", problems), 1):
        if set(row) != {"pattern", "why"} or not all(isinstance(v, str) and v for v in row.values()):
            problems.append(f"[[ignore]] {i}: expected pattern and why, both text")
        else:
            ignores.append((row["pattern"], row["why"]))
    if problems:
        raise WeightsError([f"rules {path}: {problem}" for problem in problems])
    given = {name: other or None for name, other in said.items()}
    return Rules(path.name, source, target, tuple(rows), tuple(ignores), tuple(tensors), given)


def _tables(content: Mapping[str, Any], key: str, problems: list[str]) -> list[dict[str, Any]]:
    rows = content.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        problems.append(f"{key}: expected [[{key}]]")
        return []
    return rows


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _wrong(row: Mapping[str, Any]) -> list[str]:
    wrong = [f"unknown key {key!r}" for key in row if key not in ("source", "target", "type", *OPTIONS)]
    wrong += [f"no {key}" for key in ("source", "target", "type") if not isinstance(row.get(key), str) or not row[key]]
    if wrong:
        return wrong
    if row["type"] not in TYPES:
        return [f"type: got {row['type']!r}, expected one of {', '.join(TYPES)}"]
    needed = (option.name for option in TYPES[row["type"]].options or () if option.default is None)
    wrong += [f"{row['type']} needs {name}, a number" for name in needed if not _is_count(row.get(name))]
    wrong += [f"{row[side]}: {said}" for side in ("source", "target") if (said := misplaced(row[side]))]
    if wrong:
        return wrong
    holes = [parse(row[side]).holes for side in ("source", "target")]
    if holes[0] != holes[1]:
        wrong.append(f"{row['source']} has {holes[0]} {{}}, {row['target']} has {holes[1]}; expected as many")
    return wrong
