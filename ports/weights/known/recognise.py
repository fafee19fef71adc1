"""Recognises the network and the dialect of a file from names and shapes, before a tensor is read.

Every known network in every dialect is compared with the file. The one that fits is the answer, and two answers are an
error. The numbers of classes and of input channels may differ; a network without a classifier gives features. If a
config.json describes the network, it is the only candidate, and no shape may differ.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ports.families import KNOWN, Described, family_of, layers
from ports.family import Layer, Shape
from ports.weights.form.near import LONGEST, Near
from ports.weights.form.torch_form import WeightsError, _matches
from ports.weights.known.dialects import DIALECTS, Dialect, DialectEntry, kept_leaves, mapping
from ports.weights.known.names import normal
from ports.weights.layers.kinds import KINDS
from ports.weights.layers.leaves import COUNTER, Leaf

Shapes = Mapping[str, Shape]

# The fraction of its names that a file must share with a network to be compared with it.
LEAST = 0.3


@dataclass
class Found:
    """A file understood.

    Attributes:
        network: name of the network; "" if the user's rules say what goes where.
        entries: where the file keeps each tensor, under normal names.
        raw: the file's own names by their normal ones.
        notes: what is unusual, a line each.
        warning: in what the network differs although its weights fit.
        headless: whether the network has no classifier.
        counters: BatchNorm's, if the file keeps them separately (in its metadata).
        described: what a config.json says of the network, if it was used.
    """

    network: str
    spec: Any
    dialect: str
    entries: list[DialectEntry]
    raw: dict[str, str]
    notes: list[str] = field(default_factory=list)
    warning: str = ""
    headless: bool = False
    counters: dict[str, int] = field(default_factory=dict)
    described: Described | None = None

    @property
    def label(self) -> str:
        """The name of the network, or of the named one that is the most like it."""
        changed = self.described is not None and bool(self.described.changes)
        return f"like {self.network}" if changed else self.network

    def read(self, tensors: Mapping[str, Any], parameters: bool = False) -> dict[str, Any]:
        """Tensors in the torch form: views where possible.

        Args:
            parameters: take only parameters, and of them those that exist (for the state of an optimizer).
        """
        weights: dict[str, Any] = {}
        for entry in self.entries:
            raw = [self.raw.get(name, name) for name in entry.names]
            if parameters and (not entry.parameter or not all(name in tensors for name in raw)):
                continue
            missing = not all(name in tensors for name in raw)
            if entry.tied:
                weights[entry.torch] = weights[entry.tied]
                if not missing:
                    _one_tensor(entry, entry.to_torch(tuple(tensors[name] for name in raw)), weights[entry.tied])
            elif entry.leaf.torch == COUNTER and missing:
                weights[entry.torch] = np.array(self.counters.get(entry.torch, 0), np.int64)
            else:
                weights[entry.torch] = entry.to_torch(tuple(tensors[name] for name in raw))
        return weights


def _one_tensor(entry: DialectEntry, given: Any, first: Any) -> None:
    """Refuse other values under the second name of a tensor."""
    if given is not first and np.asarray(given).tobytes() != np.asarray(first).tobytes():
        raise WeightsError(f"{entry.torch}: is one tensor with {entry.tied} in the network, got other values")


# The results for each description of `KNOWN`, in each dialect; those for descriptions of config.json come and go.
cached = functools.lru_cache(maxsize=1 << 13)


def _spec(spec: Any, features: bool) -> Any:
    """The description, or the one of the network without its classifier; None if there is none."""
    return family_of(spec).headless(spec) if features else spec


@cached
def _layers(spec: Any, features: bool) -> list[Layer]:
    spec = _spec(spec, features)
    return [] if spec is None else layers(spec)


@cached
def _names(spec: Any, dialect: str, features: bool) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The names of a network's tensors in a dialect, those of its counters, and second names of tensors.

    A file has all counters or none, and all second names or none.
    """
    rows = [(name, e) for e in mapping(_layers(spec, features), DIALECTS[dialect]) for name in e.names]
    counters = frozenset(name for name, entry in rows if entry.leaf.torch == COUNTER)
    names = frozenset(name for name, entry in rows if not entry.tied) - counters
    return names, counters, frozenset(name for name, _ in rows) - names - counters


def require(model: str | None) -> None:
    """Refuse a name that no network has.

    Raises:
        WeightsError: there is no such name; the message has the nearest names.
    """
    if model is not None and model not in KNOWN:
        near = difflib.get_close_matches(model[:LONGEST], KNOWN, n=3, cutoff=0.5) or list(KNOWN)
        raise WeightsError(f"unknown network {model[:LONGEST]!r}; nearest: {', '.join(near)}")


def recognise(shapes: Shapes, model: str | None = None, described: Described | None = None) -> Found:
    """The network and the dialect of tensors with these names and shapes.

    Args:
        model: the network, if it is known; then `described` only gives a note.
        described: what a config.json says of the network.

    Raises:
        WeightsError: no network fits (with all problems of the nearest), or several do; or the config describes another
            network than the tensors, or one that the ports do not compute.
    """
    require(model)
    if model is None and described is not None:
        return _as_described(shapes, described)
    candidates = [KNOWN[model]] if model else [*KNOWN.values()]
    found = _recognised(shapes, candidates)
    if found is None:
        raise WeightsError(_misfit({name: shapes[r] for name, r in normal(shapes).items()}, model))
    if described is not None:
        found.notes += [f"--model {model} is taken as it is; {text}" for text in _objections(described)]
    return found


def _as_described(shapes: Shapes, described: Described) -> Found:
    """The network of a config.json, in the dialect of the tensors."""
    if described.problems:
        raise WeightsError([*described.problems[:-1], f"{described.problems[-1]}; {WITHOUT}"])
    spec, place = described.spec, described.place
    # Listing the layers of many blocks takes long, and a file with few arrays cannot hold them.
    most = max((len(shapes), *(shape[0] for shape in shapes.values() if shape)))
    if spec.number_of_blocks > most:
        raise WeightsError(f"{place} describes {spec.number_of_blocks} blocks, got {len(shapes)} tensors; {OTHER}")
    found = _recognised(shapes, [spec], exactly=True)
    if found is None:
        given = {name: shapes[r] for name, r in normal(shapes).items()}
        nearest = _nearest(given, [spec], exactly=True)
        assert nearest is not None
        _, dialect, wanted = nearest
        problems = _problems(given, wanted, place)
        more = f", and {len(problems) - 1} more such problems" if len(problems) > 1 else ""
        kind = Contradiction if wanted.keys() == given.keys() else WeightsError
        raise kind(f"{place} describes other tensors ({dialect}): {problems[0]}{more}; {OTHER}")
    found.described = described
    return found


class Contradiction(WeightsError):
    """A config.json names the tensors of a file, and gives them other shapes."""


WITHOUT = "--model NAME takes the tensors as those of a named network, --rules FILE as those of your own"
OTHER = "give the one that was saved with them: --config FILE (config=)"


def _objections(described: Described) -> list[str]:
    """Why a config does not describe the named network: its problems, or the differences."""
    difference = described.difference("nnx")
    return [*described.problems, *([difference] if difference else [])]


def _recognised(shapes: Shapes, specs: Sequence[Any], exactly: bool = False) -> Found | None:
    """The one network of these that fits, and its dialect; None if none does.

    Raises:
        WeightsError: several fit.
    """
    plain = normal(shapes)
    candidates: list[Found] = []
    for raw, note in _prefixes(plain):
        found = list(_fitting({name: shapes[r] for name, r in raw.items()}, raw, specs, exactly))
        for one in found:
            one.notes += note
        candidates += found
        if candidates:
            break
    distinct: list[Found] = []
    for one in candidates:
        if not any(_same(one, other) for other in distinct):
            distinct.append(one)
    if len(distinct) > 1:
        names = " or ".join(f"{one.network} ({one.dialect})" for one in distinct)
        raise WeightsError(f"the tensors fit {names}; say which with --model NAME (model=)")
    return distinct[0] if distinct else None


def _prefixes(plain: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The names as they are, then without a first part that all have (`model.`, `backbone.`)."""
    yield plain, []
    names = plain
    for _ in range(2):
        firsts = {name.partition(".")[0] for name in names}
        if len(firsts) != 1 or not all("." in name for name in names):
            return
        names = {name.partition(".")[2]: raw for name, raw in names.items()}
        yield names, [f"every name begins with {firsts.pop()}., which is left out"]


def _same(a: Found, b: Found) -> bool:
    def told(found: Found) -> list[tuple[str, tuple[str, ...], Shape, bool]]:
        return [(e.torch, e.names, e.shape, e.leaf.to_torch is Leaf.to_torch) for e in found.entries]

    return told(a) == told(b)


@cached
def _can_be_stacked(spec: Any) -> bool:
    return any(layer.stack for layer in _layers(spec, False))


@cached
def _sizes(spec: Any, tensors: str, features: bool, stacked: bool) -> tuple[int, int]:
    """The numbers of arrays that a file can hold: without and with the second names of tensors."""
    return _size(spec, tensors, features, False, stacked), _size(spec, tensors, features, True, stacked)


@cached
def _size(spec: Any, tensors: str, features: bool, tied: bool = False, stacked: bool = False) -> int:
    """The number of arrays in a file of a network, for dialects of a kind, without counters.

    Args:
        tied: count those with two names twice.
        stacked: count those of all blocks once.
    """
    return sum(
        len(names)
        for layer in _layers(spec, features)
        if not (stacked and layer.stack) or layer.keys[0] == "0"
        for leaf, _, names in kept_leaves(KINDS[layer.type].leaves, tensors, layer.options)
        if leaf.torch in layer.shapes and leaf.torch != COUNTER and (tied or not layer.tied)
    )


def _fitting(shapes: Shapes, raw: dict[str, str], specs: Sequence[Any], exactly: bool) -> Iterator[Found]:
    """The networks and dialects that fit.

    Args:
        exactly: no shape may differ from the description's.
    """
    given = set(shapes)
    for dialect in DIALECTS.values():
        # Without blocks to stack, a stacked dialect is the same as the plain one.
        known = [spec for spec in specs if _has_names(dialect, spec) and (_can_be_stacked(spec) or not dialect.stacked)]
        ignored = {n for n in given if any(_matches(n, rule.pattern) for rule in dialect.ignore)}
        if dialect.ignore and not all(any(_matches(n, r.pattern) for n in given) for r in dialect.ignore):
            continue
        size = sum(not name.endswith(COUNTER) for name in given - ignored)
        for candidate in known:
            for features in (False, True):
                if size not in _sizes(candidate, dialect.tensors, features, dialect.stacked):
                    continue
                names, counters, tied = _names(candidate, dialect.name, features)
                rest = given - ignored - names
                if not names <= given or rest - counters - tied or rest & tied not in (frozenset(), tied):
                    continue
                if (rest := rest - tied) and rest != counters:
                    continue
                spec = _spec(candidate, features)
                spec = spec if exactly else _resized(spec, dialect, shapes)
                rows = mapping(spec, dialect)
                if all(shapes.get(n, s) == s for e in rows for n, s in zip(e.names, e.shapes, strict=True)):
                    notes = _notes(spec, None if exactly else candidate, features, dialect, rest, ignored)
                    yield Found(candidate.name, spec, dialect.name, rows, raw, notes, dialect.warning, features)


def _has_names(dialect: Dialect, spec: Any) -> bool:
    return not dialect.networks or spec.name in dialect.networks


def _resized(spec: Any, dialect: Dialect, shapes: Shapes) -> Any:
    """The description with the file's sizes: its numbers of classes and of input channels."""
    rows = {entry.torch: entry for entry in mapping(spec, dialect)}
    changes = {}
    for size in family_of(spec).sizes(spec):
        if size.tensor in rows and (shape := _torch_shape(rows[size.tensor], shapes)):
            changes[size.option] = size.value(shape[size.axis]) or getattr(spec, size.option)
    return dataclasses.replace(spec, **changes)


def _torch_shape(entry: DialectEntry, shapes: Shapes) -> Shape | None:
    """The shape in PyTorch of a tensor of the file; None if the file lacks it, or has another number of dimensions."""
    given = [shapes.get(name) for name in entry.names]
    if any(a is None or len(a) != len(b) for a, b in zip(given, entry.shapes, strict=True)):
        return None
    return entry.leaf.to_torch(tuple(np.broadcast_to(np.int8(0), shape or ()) for shape in given)).shape


def _notes(spec: Any, base: Any, features: bool, dialect: Dialect, counters: set[str], ignored: set[str]) -> list[str]:
    """What is unusual, compared with the named network `base`; None if no named network was compared."""
    notes = []
    tensors = {name for layer in layers(spec) for name in layer.tensors}
    for size in family_of(spec).sizes(spec) if base is not None else ():
        found, usual = getattr(spec, size.option), getattr(base, size.option)
        if found != usual and size.tensor in tensors:
            notes.append(f"{found} {size.text}, {spec.name} has {usual}")
    if features:
        notes.append("no classifier: the network gives features")
    if not counters and any(COUNTER in layer.shapes for layer in layers(spec)):
        notes.append(f"no {COUNTER}: taken as 0")
    if ignored:
        notes.append(f"{len(ignored)} tensors left out: {'; '.join(rule.why for rule in dialect.ignore)}")
    return notes


def _misfit(shapes: Shapes, model: str | None) -> list[str]:
    """All differences from the nearest network and dialect.

    Args:
        model: the network, if it is known.
    """
    # If two sets differ this much in size, they cannot share a large fraction, whatever the names are.
    count = max(len(shapes), 1)
    near = [s for s in KNOWN.values() if LEAST / 2 < _size(s, "torch", False) / count < 2 / LEAST]
    found = _nearest(shapes, [KNOWN[model]] if model else near, least=0 if model else LEAST)
    if found is None:
        some = ", ".join(f"{n} {s}" for n, s in list(shapes.items())[:3])
        return [
            f"{len(shapes)} tensors ({some} …) are not a network known here; describe your own in a file: --rules FILE"
            ", or give the config.json of transformers: --config FILE"
        ]
    spec, dialect, wanted = found
    hint = "; --config FILE gives the config.json of one without a name here" if family_of(spec).config else ""
    return [
        f"the tensors fit no network known here; the nearest is {spec.name} ({dialect}){hint}, from which differ:",
        *_problems(shapes, wanted, spec.name),
    ]


def _nearest(
    shapes: Shapes, specs: Sequence[Any], exactly: bool = False, least: float = 0
) -> tuple[Any, str, dict[str, Shape]] | None:
    """The nearest description and dialect, and their tensors; None if no description shares enough names.

    Args:
        exactly: no shape may differ from the description's.
        least: the fraction of names that is enough.
    """
    given = set(shapes)

    def overlap(spec: Any, dialect: str) -> float:
        names, counters, tied = _names(spec, dialect, False)
        return len(given & (names | counters | tied)) / len(given | names)

    pairs = [
        (spec, name) for spec in specs for name, row in DIALECTS.items() if not row.ignore and _has_names(row, spec)
    ]
    ranked = sorted(pairs, key=lambda pair: -overlap(*pair))[:6]
    if not ranked or overlap(*ranked[0]) < least:
        return None
    wanted = {pair: _wanted(shapes, *pair, exactly=exactly) for pair in ranked}
    spec, dialect = min(ranked, key=lambda pair: sum(_misfits(shapes, wanted[pair])))
    return spec, dialect, wanted[spec, dialect]


def _misfits(shapes: Shapes, wanted: Shapes) -> tuple[int, int, int]:
    """How many tensors are missing, are surplus, and have another shape."""
    both = wanted.keys() & shapes.keys()
    return len(wanted) - len(both), len(shapes) - len(both), sum(wanted[n] != shapes[n] for n in both)


def _wanted(shapes: Shapes, base: Any, dialect: str, exactly: bool) -> dict[str, Shape]:
    """The tensors of a network in a dialect, without counters and second names if the file has none."""
    spec = base if exactly else _resized(base, DIALECTS[dialect], shapes)
    wanted = {n: s for e in mapping(spec, DIALECTS[dialect]) for n, s in zip(e.names, e.shapes, strict=True)}
    for left in _names(base, dialect, False)[1:]:
        if not any(name in shapes for name in left):
            wanted = {name: shape for name, shape in wanted.items() if name not in left}
    return wanted


def _problems(shapes: Shapes, wanted: Shapes, network: str) -> list[str]:
    missing = {n: shape for n, shape in wanted.items() if n not in shapes}
    extra = {n: shape for n, shape in shapes.items() if n not in wanted}
    candidates = Near(extra)
    problems = [f"{n} {shape}: missing{candidates.hint(n, shape)}" for n, shape in missing.items()]
    candidates = Near(missing)
    problems += [f"{n} {s}: no such tensor in {network}{candidates.hint(n, s)}" for n, s in extra.items()]
    problems += [f"{n}: got shape {shapes[n]}, expected {s}" for n, s in wanted.items() if shapes.get(n, s) != s]
    return problems
