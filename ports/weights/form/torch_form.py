"""The strict matching between weights in the torch form and the tensors of a model.

Every source tensor is used exactly once and every target is set exactly once. A tensor that is dropped, renamed or
filled in on purpose needs a rule with its reason. All problems are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ports.errors import UserError, printable, shortened
from ports.weights.form.near import Near

LISTED = 100


class WeightsError(UserError):
    """Weights that do not fit; `problems` has one printable line for each.

    The text of the error shows the first `LISTED` of them, because a file with 100,000 foreign tensors has as many
    problems.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [printable(text) for text in ([problems] if isinstance(problems, str) else problems)]
        more = len(self.problems) - LISTED
        shown = [*map(shortened, self.problems[:LISTED]), *([f"… and {more:,} more (.problems)"] if more > 0 else [])]
        super().__init__("\n  ".join([*self._heading(), *shown]))

    def _heading(self) -> list[str]:
        count = len(self.problems)
        return [f"{count} problems, nothing was written:"] if count > 1 else []

    @property
    def lines(self) -> list[str]:
        return [*self._heading(), *self.problems]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


def _matches(name: str, pattern: str) -> bool:
    """Shell-style, against the whole name or its end: `num_batches_tracked` matches `bn1.num_batches_tracked`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


@dataclass(frozen=True)
class Ignore:
    """Source tensors that are dropped: `Ignore("*.shortcut.*", why="built, never called")`."""

    pattern: str
    why: str


@dataclass(frozen=True)
class Default:
    """Target tensors that the source lacks: `Default("num_batches_tracked", 0, why="older than the counter")`."""

    pattern: str
    value: Any
    why: str


@dataclass(frozen=True)
class Rename:
    r"""Source names that are rewritten (a regular expression): `Rename(r"^module\.", "", why="DataParallel")`."""

    pattern: str
    replacement: str
    why: str


Rule = Ignore | Default | Rename


@dataclass(frozen=True)
class Target:
    """The tensor that a model needs under one PyTorch name."""

    shape: tuple[int, ...]
    dtype: np.dtype


def match(
    weights: Mapping[str, Any], targets: Mapping[str, Target], rules: Sequence[Rule] = ()
) -> dict[str, np.ndarray]:
    """The array for every target, in the target's dtype.

    Raises:
        WeightsError: tensors that are missing, left over, renamed to the same name, of another shape, or of a type that
            would lose bits; a rule that matches nothing.
    """
    problems: list[str] = []
    source = _apply(weights, targets, rules, problems)
    missing = [name for name in targets if name not in source]
    extra = [name for name in source if name not in targets]
    candidates = Near({n: source[n].shape for n in extra})
    for name in missing:
        problems.append(f"{name} {targets[name].shape}: missing{candidates.hint(name, targets[name].shape)}")
    candidates = Near({n: targets[n].shape for n in missing})
    for name in extra:
        hint = candidates.hint(name, source[name].shape)
        problems.append(f"{name} {source[name].shape}: no such tensor in the model{hint}")
    result = {}
    for name, target in targets.items():
        if name in source:
            value = source[name]
            if value.shape != target.shape:
                problems.append(f"{name}: got shape {value.shape}, expected {target.shape}")
            elif (cast := lossless(value, target.dtype)) is None:
                problems.append(f"{name}: got {value.dtype}, which loses bits in the model's {target.dtype}")
            else:
                result[name] = cast
    if problems:
        raise WeightsError(problems)
    return result


def _apply(
    weights: Mapping[str, Any], targets: Mapping[str, Target], rules: Sequence[Rule], problems: list[str]
) -> dict[str, np.ndarray]:
    """The source after its rules; errors in the rules go to `problems`."""
    source = _arrays(weights)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise WeightsError(f"rule {rule!r}: expected Ignore, Default or Rename")
        if isinstance(rule, Ignore):
            used = {name for name in source if _matches(name, rule.pattern)}
            source = {name: value for name, value in source.items() if name not in used}
        elif isinstance(rule, Rename):
            names = renamed(source, rule)
            used = [name for name in source if re.search(rule.pattern, name)]
            under: dict[str, np.ndarray] = {}
            for name, value in source.items():
                if names[name] in under:
                    problems.append(f"{name}: renamed to {names[name]}, which another tensor has (rule: {rule.why})")
                under[names[name]] = value
            source = under
        else:
            used = [name for name in targets if _matches(name, rule.pattern) and name not in source]
            for name in used:
                value = _filled(rule.value, targets[name])
                if value is None:
                    got, (shape, dtype) = str(rule.value)[:40], (targets[name].shape, targets[name].dtype)
                    raise WeightsError(
                        f"{name} {shape}: got the default {got}, which cannot be represented as {dtype} ({rule.why})"
                    )
                source[name] = value
        if not used:
            problems.append(f"rule {type(rule).__name__}({rule.pattern!r}): matches nothing ({rule.why})")
    return source


def renamed(names: Iterable[str], *rules: Rule) -> dict[str, str]:
    """Return the new name of each name, by the rules of renaming; other rules do not concern names.

    Raises:
        WeightsError: a pattern that is not a regular expression.
    """
    found = {name: name for name in names}
    for rule in (rule for rule in rules if isinstance(rule, Rename)):
        try:
            found = {name: re.sub(rule.pattern, rule.replacement, new) for name, new in found.items()}
        except re.error as error:
            text = f"rule Rename({rule.pattern!r}, {rule.replacement!r}): {error} ({rule.why})"
            raise WeightsError(text) from None
    return found


def _arrays(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(weights, Mapping):
        raise WeightsError(f"weights: got {type(weights).__name__}, expected a dict of numpy arrays")
    arrays, problems = {}, []
    for name, value in weights.items():
        try:
            arrays[name] = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{name}: got {type(value).__name__}, expected a numpy array ({error})")
    if problems:
        raise WeightsError(problems)
    return arrays


def _filled(value: object, target: Target) -> np.ndarray | None:
    """A number in every place of a target, or an array of its shape; None if the target cannot hold it."""
    array = np.asarray(value)
    if array.ndim:
        return lossless(array, target.dtype) if array.shape == target.shape else None
    try:
        with np.errstate(all="ignore"):
            number = array.astype(target.dtype)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = target.dtype.kind not in "iub" or number == array
    return np.full(target.shape, number) if fits and array.dtype.kind in "biufcV" else None


def lossless(value: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """`value` in another dtype if every value of its type (for integers: every value in it) fits; otherwise None."""
    if value.dtype == dtype:
        return value
    if value.dtype.kind in "iu" and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        fits = value.size == 0 or (value.min() >= bounds.min and value.max() <= bounds.max)
        return value.astype(dtype) if fits else None
    if "b" in (value.dtype.kind, dtype.kind) or "i" in (value.dtype.kind, dtype.kind):
        return None
    try:
        return value.astype(dtype) if np.promote_types(value.dtype, dtype) == dtype else None
    except TypeError:
        return None


def describe(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fold_recurrent_biases(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Add the second bias of LSTMs and GRUs to the first where only their sum counts, and set the second to zero.

    PyTorch has two biases per gate (`bias_ih`, `bias_hh`), Flax has one. The function of the layer stays the same, up
    to rounding. A GRU keeps the part of `bias_hh` at its new gate, which the reset gate multiplies.
    """
    result = {name: np.asarray(value) for name, value in weights.items()}
    for name in weights:
        if (second := name.replace("bias_ih", "bias_hh")) != name and second in result:
            hidden = result[second.replace("bias_hh", "weight_hh")].shape[1]
            summed = np.arange(len(result[second])) < (2 if len(result[second]) == 3 * hidden else 4) * hidden
            result[name] = np.where(summed, result[name] + result[second], result[name])
            result[second] = np.where(summed, np.zeros_like(result[second]), result[second])
    return result
