"""What the caller's `names` say, and the error that asks for them.

An entry names a layer, a module with layers in it, a tensor, or several tensors that one holds; `*` stands for one part
of a name. Behind a colon stands the form, where several fit:

| entry                                                  | says                                        |
|--------------------------------------------------------|---------------------------------------------|
| `"encoder.layers.*.linear1": "Block_*.Dense_0"`        | which layer is which                        |
| `"h.*.attn.c_attn.weight": "blocks_*/attn/qkv/kernel"` | which tensor is which                       |
| `"q.weight + k.weight + v.weight": "qkv.kernel"`       | that one tensor holds several, in order     |
| `"experts.*.fc.weight": "experts.kernel: transpose"`   | that a stack holds all, and in which form   |
| `"mask": None`                                         | that nothing in the other model is the same |
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parity.pairing.forms import fitting_forms
from parity.pairing.likeness import ROLES, starred, words
from parity.pairing.pairs import GIVEN, Unpaired
from parity.pairing.tensors import Match, Tensor, tensors_of
from parity.running.inventory import OWN
from parity.running.model_layers import ModelLayer
from ports.errors import UserError

Layers = Mapping[str, ModelLayer]

# What Flax's libraries call the tensors of their layers, by PyTorch's names.
FLAX_NAMES = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",), "running_var": ("var",)}
LINES = 15  # of an error


@dataclass(frozen=True)
class Entry:
    """One entry of `names`.

    Attributes:
        text: PyTorch's side as it was written.
        torch: the patterns of PyTorch's side.
        flax: those of Flax's; None where there is no counterpart.
        form: the rearrangement as text; empty where it was not said.
    """

    text: str
    torch: tuple[str, ...]
    flax: tuple[str, ...] | None
    form: str = ""

    @classmethod
    def of(cls, pattern: str, other: str | None) -> Entry:
        """Return the entry as it was written.

        Raises:
            UserError: something else than text.
        """
        if not isinstance(pattern, str) or not (other is None or isinstance(other, str)):
            raise UserError(f"names: got {pattern!r}: {other!r}; expected a name, and a name or None")
        names, _, form = (other or "").partition(":")
        return cls(pattern, _parts(pattern), None if other is None else _parts(names), form.strip())

    def scopes(self, left: Layers, side: str) -> dict[str, str]:
        """Return the layers or modules that the entry names, by PyTorch's names: Flax's names of them.

        Raises:
            UserError: no name of a layer fits.
        """
        found: dict[str, str] = {} if self.torch[0] else {"": (self.flax or ("",))[0]}  # the whole model
        for name in left:
            if match := _expression(self.torch[0], r"(?=\.|$)").match(name):
                found[match.group()] = _filled((self.flax or ("",))[0], match.groups())
        if not found:
            near = nearest(self.torch[0], left)
            raise UserError(f"names: {self.text!r} matches no layer of {side}'s that is left; the nearest is {near}")
        return found


def _parts(text: str) -> tuple[str, ...]:
    names = (name.strip().replace("/", ".") for name in text.split("+"))
    return tuple(name.removeprefix("params.") for name in names)


def _expression(pattern: str, end: str = "$") -> re.Pattern[str]:
    return re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))) + end)


def _filled(pattern: str, stars: Sequence[str]) -> str:
    parts = iter(stars)
    return re.sub(r"\*", lambda _: next(parts, "*"), pattern)


def within(name: str, scope: str) -> bool:
    """Whether a layer is the one of this name, or stands in the module of this name."""
    return not scope or name == scope or name.startswith(f"{scope}.")


def nearest(name: str, others: Iterable[str]) -> list[str]:
    """Return the name that is most alike, where there is one."""
    return difflib.get_close_matches(name, [*others], 1, 0)


def without(entry: Entry, left: dict[str, ModelLayer], right: dict[str, ModelLayer], port: str) -> list[Unpaired]:
    """Take the layers away that the entry says have no counterpart, PyTorch's or the port's.

    Raises:
        UserError: no name fits.
    """
    expression = _expression(entry.torch[0], r"(?=\.|$)")
    for side in (left, right):
        if chosen := [name for name in side if expression.match(name)]:
            for name in chosen:
                del side[name]
            return [Unpaired(name, "given: no counterpart") for name in chosen]
    near = nearest(entry.torch[0], [*left, *right])
    raise UserError(f"names: {entry.text!r}: neither PyTorch nor {port} has such a layer or tensor; near: {near}")


def tensors_named(entry: Entry, left: Layers, right: Layers, port: str) -> list[Match]:
    """Return which tensors are which; none where the entry names layers.

    Raises:
        UserError: a name that is not there, or tensors that cannot hold the same numbers.
    """
    mine, theirs = tensors_of(left.values()), tensors_of(right.values())
    others = {alias: tensor for tensor in theirs for alias in _aliases(tensor)}
    ours = {tensor.full: tensor for tensor in mine}
    plain = not entry.form and len(entry.torch) == len(entry.flax or ()) == 1
    if plain and not (_any(entry.torch[0], ours) and _any((entry.flax or ("",))[0], others)):
        return []
    if plain and _same_layers(entry, left, right):
        return []
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for pattern in entry.torch:
        chosen = [(name, match) for name in ours if (match := _expression(pattern).match(name))]
        if not chosen:
            raise _absent(entry, pattern, "PyTorch", ours)
        for name, match in sorted(chosen, key=lambda one: _natural(one[0])):
            groups[tuple(_filled(other, match.groups()) for other in entry.flax or ())].append(name)
    return [_match(entry, [ours[name] for name in some], key, others, port) for key, some in groups.items()]


def _any(pattern: str, names: Iterable[str]) -> bool:
    expression = _expression(pattern)
    return any(expression.match(name) for name in names)


def _same_layers(entry: Entry, left: Layers, right: Layers) -> bool:
    """Whether both sides are parameters of modules of the user's own with the same shape: layers as they are."""
    (other,) = entry.flax or ("",)
    mine = [layer for name, layer in left.items() if _expression(entry.torch[0]).match(name)]
    theirs = [layer for name, layer in right.items() if _any(other, [name])]
    shapes = {tuple(layer.shapes) for layer in (*mine, *theirs)}
    return bool(mine and theirs) and len(shapes) == 1 and all(layer.kind == OWN for layer in (*mine, *theirs))


def _aliases(tensor: Tensor) -> list[str]:
    """Return what a tensor of the port may be called: as PyTorch would, and as Flax does."""
    module, _, leaf = tensor.full.rpartition(".")
    more = () if tensor.layer.kind == OWN else FLAX_NAMES.get(leaf, ())
    return [tensor.full, *(f"{module}.{name}" if module else name for name in more)]


def _natural(name: str) -> list[object]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _match(entry: Entry, ours: list[Tensor], names: Sequence[str], others: Mapping[str, Tensor], port: str) -> Match:
    theirs: list[Tensor] = []
    for name in names:
        chosen = sorted((other for other in others if _expression(name).match(other)), key=_natural)
        if not chosen:
            raise _absent(entry, name, port, others)
        theirs += [others[other] for other in chosen]
    fitting = fitting_forms(ours, theirs) if len(ours) == 1 or len(theirs) == 1 else ()
    sizes = [", ".join(f"{t.full} {t.shape}" for t in side) for side in (ours, theirs)]
    if not fitting:
        raise UserError(
            f"names: {entry.text!r}: {sizes[0]} and {sizes[1]} cannot hold the same numbers in another order; "
            "expected one tensor on one side at least, and as many numbers on both"
        )
    if not entry.form and (len(ours) > 1 or len(theirs) > 1):  # the names are given in their order
        fitting = tuple(form for form in fitting if [*form.order] == sorted(form.order)) or fitting
    if entry.form:
        wanted = entry.form.replace(" ", "")
        chosen_forms = [form for form in fitting if str(form).replace(" ", "") == wanted]
        chosen_forms = chosen_forms or [form for form in fitting if wanted in str(form).replace(" ", "")]
        if not chosen_forms:
            said = "; ".join(map(str, fitting[:6]))
            raise UserError(f"names: {entry.text!r}: got the form {entry.form!r}, expected one of: {said}")
        fitting = (chosen_forms[0],)
    return Match(tuple(ours), tuple(theirs), fitting, GIVEN)


def _absent(entry: Entry, pattern: str, side: str, names: Iterable[str]) -> UserError:
    near = nearest(pattern, names)
    return UserError(f"names: {entry.text!r}: no tensor of {side}'s that is left is called {pattern!r}; near: {near}")


# --- the error


@dataclass(frozen=True)
class _Kind:
    """Layers whose names differ in their numbers alone: one line of the error."""

    name: str
    layers: tuple[ModelLayer, ...]

    @property
    def what(self) -> str:
        """What a counterpart would be."""
        return "of this size" if self.layers[0].kind == OWN else self.layers[0].kind

    @property
    def first(self) -> _Kind:
        """The first of the layers alone."""
        return _Kind(self.layers[0].name, self.layers[:1])

    def tensor(self, leaf: str) -> str:
        """The name of a tensor, as an entry says it."""
        return starred([layer.tensors[leaf] for layer in self.layers])

    def __str__(self) -> str:
        many = f", {len(self.layers)} of them" if len(self.layers) > 1 else ""
        first = next(iter(self.layers))
        return f"{self.name} {str(first).partition(' ')[2]}{many}"


def _kinds(layers: Iterable[ModelLayer]) -> list[_Kind]:
    found: dict[object, list[ModelLayer]] = defaultdict(list)
    for layer in layers:
        found[_pattern(layer.name), str(layer).partition(" ")[2]].append(layer)
    return [_Kind(starred([layer.name for layer in some]), tuple(some)) for some in found.values()]


def _pattern(name: str) -> str:
    """Return a name with a star for each number that counts layers: of `h.0.fc1`, `h_0.fc1` and `Dense_0` the 0."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        counted = part[:1].isupper() or i + 1 < len(parts)
        if part.isdigit() or (counted and re.search(r"_\d+$", part)):
            parts[i] = re.sub(r"\d+$", "*", part)
    return ".".join(parts)


def unpaired(
    left: Sequence[ModelLayer], right: Sequence[ModelLayer], port: str, uncalled: Sequence[ModelLayer] = ()
) -> str:
    """Return the error for what stays open: at most 15 lines, with the entry of `names` that would settle it.

    Args:
        uncalled: layers of the port that fit one that is open, and that it never calls.
    """
    mine, theirs = _kinds(left), _kinds(right)
    lines = [f"{port} never calls {kind}, which its code may have forgotten" for kind in _kinds(uncalled)]
    for kind in mine:
        near = ", ".join(map(str, _candidates(kind, theirs)[:4]))
        lines.append(f"PyTorch's {kind}: candidates " + (near or f"none: {port} has no more {kind.what}"))
    lines += [f"{port}'s {kind}: PyTorch has no more {kind.what}" for kind in theirs if not _candidates(kind, mine)]
    if len(lines) > LINES - 2:
        lines = [*lines[: LINES - 3], f"and {len(lines) - LINES + 3} more"]
    return "\n".join([f"the layers of the two models cannot be paired; {_advice(mine, theirs)}", *lines])


def _candidates(kind: _Kind, others: Sequence[_Kind]) -> list[_Kind]:
    """Return what could be the counterpart: layers of the same type, or with as many numbers in some tensor."""
    first = kind.layers[0]
    sizes = {v.size for v in first.values.values()}

    def rank(other: _Kind) -> tuple[bool, bool, bool, float]:
        theirs = other.layers[0]
        alike = difflib.SequenceMatcher(None, kind.name.lower(), other.name.lower()).ratio()
        return theirs.kind != first.kind, theirs.shapes != first.shapes, not _same_roles(kind, other), -alike

    fitting = [
        other
        for other in others
        if other.layers[0].kind == first.kind != OWN
        or sizes & {v.size for v in other.layers[0].values.values()}
        or _listed(kind, other)
    ]
    return sorted(fitting, key=rank)


def _same_roles(kind: _Kind, other: _Kind) -> bool:
    """Whether each tensor of the second has one of its role in the first, as far as names tell: weight for gamma."""
    ours, theirs = ({_role(one.tensor(leaf)) for leaf in one.layers[0].tensors} for one in (kind, other))
    return theirs <= {*ours, ""}


def _role(name: str) -> str:
    return ROLES.get((words(name) or [""])[-1], "")


def _listed(kind: _Kind, other: _Kind) -> bool:
    """Whether a tensor of one kind of layers may hold those of a list of the other kind."""
    sides = ([v.size * len(one.layers) for v in one.layers[0].values.values()] for one in (kind, other))
    return len(kind.layers) != len(other.layers) and bool({*next(sides)} & {*next(sides)})


def _advice(mine: Sequence[_Kind], theirs: Sequence[_Kind]) -> str:
    for kind in mine:
        for other in _candidates(kind, theirs):
            if len(kind.layers) != len(other.layers) and not _listed(kind, other):
                kind, other = kind.first, other.first
            ours, its = _named_alike(kind, other)
            return f"say which is which with names={{{ours!r}: {its!r}, …}}, or add what is missing"
    alone = next(iter((*mine, *theirs)), None)
    return "add what is missing" + (f", or say with names={{{alone.name!r}: None}} that it has none" if alone else "")


def _named_alike(kind: _Kind, other: _Kind) -> tuple[str, str]:
    """Return names that may stand in one entry: of two layers, or of tensors of two types of layers."""
    a, b = kind.layers[0], other.layers[0]
    if a.kind == b.kind:
        return kind.name, other.name
    counts = (len(kind.layers), len(other.layers)) if _listed(kind, other) else (1, 1)
    sizes = ({x: v.size * n for x, v in one.values.items()} for one, n in zip((a, b), counts, strict=True))
    ours, theirs = sizes
    both = [(x, y) for x, v in ours.items() for y, w in theirs.items() if v == w]
    both.sort(key=lambda pair: _role(kind.tensor(pair[0])) != _role(other.tensor(pair[1])))
    leaf, its = both[0] if both else (next(iter(a.values)), next(iter(b.values)))
    return kind.tensor(leaf), other.tensor(its)
