"""Names against patterns with holes, such as `encoder.layers.{}.linear1`, in a time that a name cannot blow up.

A hole takes one or more characters of one part of a name; parts stand between dots. A pattern therefore meets only
names with as many parts as it has, part by part, and never goes back: a regular expression with several holes tries
every way to share the characters out. Where a part can be shared out in several ways, the first hole takes most.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

HOLE = re.compile(r"\{([0-9]*)\}")


@dataclass(frozen=True)
class Part:
    """What stands between two dots of a pattern: texts, and the holes between them."""

    texts: tuple[str, ...]
    holes: tuple[int, ...]

    def match(self, given: str, known: dict[int, str]) -> dict[int, str] | None:
        """Return what stands in the holes that are not known yet; None where the part does not fit."""
        texts, holes = [self.texts[0]], []
        for hole, text in zip(self.holes, self.texts[1:], strict=True):
            if hole in known:
                texts[-1] += known[hole] + text
            else:
                texts.append(text)
                holes.append(hole)
        values = _shared(texts, given) if len(set(holes)) == len(holes) else _repeated(texts, holes, given)
        if values is None:
            return None
        found = dict(zip(holes, values, strict=True))
        return found if all(found[hole] == value for hole, value in zip(holes, values, strict=True)) else None


def _shared(texts: list[str], given: str) -> list[str] | None:
    """Return what stands between the texts: each is looked for once, from the end, as far right as it can stand."""
    if len(texts) == 1:
        return [] if given == texts[0] else None
    first, *middle, last = texts
    if not given.startswith(first) or not given.endswith(last):
        return None
    begin, end, values = len(first), len(given) - len(last), []
    for text in reversed(middle):
        at = given.rfind(text, begin + 1, max(end - 1, 0))
        if at < 0:
            return None
        values.append(given[at + len(text) : end])
        end = at
    return [given[begin:end], *reversed(values)] if begin < end else None


def _repeated(texts: list[str], holes: list[int], given: str) -> list[str] | None:
    """Return what stands in a hole that a part has several times: its length follows from that of the part."""
    if len(set(holes)) > 1:
        return _shared(texts, given)
    length, rest = divmod(len(given) - sum(map(len, texts)), len(holes))
    value = given[len(texts[0]) : len(texts[0]) + length]
    return [value] * len(holes) if length > 0 and not rest and value.join(texts) == given else None


@dataclass(frozen=True)
class Pattern:
    """A pattern taken apart.

    Attributes:
        parts: in the order of the text.
        order: the order in which parts are matched: those with the fewest unknown holes first.
        holes: how many different holes there are.
    """

    text: str
    parts: tuple[Part, ...]
    order: tuple[int, ...]
    holes: int

    def match(self, parts: list[str]) -> tuple[str, ...] | None:
        """Return what stands in the holes of a name, given by its parts; None where the pattern does not fit."""
        if len(parts) != len(self.parts):
            return None
        known: dict[int, str] = {}
        for at in self.order:
            found = self.parts[at].match(parts[at], known)
            if found is None:
                return None
            known |= found
        return tuple(known[hole] for hole in range(self.holes))


@cache
def parse(text: str) -> Pattern:
    """Return a pattern that has nothing `misplaced`, taken apart."""
    automatic, parts = 0, []
    for part in text.split("."):
        pieces = HOLE.split(part)
        holes = []
        for number in pieces[1::2]:
            holes.append(int(number) if number else automatic)
            automatic += not number
        parts.append(Part(tuple(pieces[::2]), tuple(holes)))
    left, order, known = list(range(len(parts))), [], set[int]()
    while left:
        order.append(min(left, key=lambda at: len(set(parts[at].holes) - known)))
        left.remove(order[-1])
        known |= set(parts[order[-1]].holes)
    return Pattern(text, tuple(parts), tuple(order), len(known))


def misplaced(text: str) -> str | None:
    """Return what is wrong with the holes of a pattern; None where nothing is."""
    holes = HOLE.findall(text)
    numbers = {int(hole) for hole in holes if hole and len(hole) < 4}
    if any(holes) and (not all(holes) or numbers != set(range(len(numbers))) or any(len(hole) > 3 for hole in holes)):
        return "expected {} throughout, or {0}, {1}, … without a gap"
    if re.search(r"[{}]", HOLE.sub("", text)):
        return "expected { and } only as {}, {0}, {1}, …"
    if "}{" in text:
        return "two holes side by side; nothing says where the first one ends"
    return None


class Names:
    """Names by their parts: a pattern is tried only on those that have its rarest text in the same place."""

    def __init__(self, names: Iterable[str], depth: int) -> None:
        """Args: depth: how many parts the longest pattern has."""
        self.parts = {name: name.split(".") for name in names}
        self._having: dict[tuple[int, str], list[str]] = defaultdict(list)
        for name, parts in self.parts.items():
            for place in enumerate(parts[:depth]):
                self._having[place].append(name)

    def candidates(self, pattern: Pattern) -> Collection[str]:
        """Return the names that may fit a pattern."""
        texts = [(at, part.texts[0]) for at, part in enumerate(pattern.parts) if not part.holes]
        return min((self._having.get(place, []) for place in texts), key=len, default=self.parts)

    def starting(self, pattern: Pattern) -> Iterable[tuple[str, str, tuple[str, ...]]]:
        """Return the names whose first parts fit a pattern: these, the rest with its dot, and what the holes take."""
        for name in self.candidates(pattern):
            parts, end = self.parts[name], len(pattern.parts)
            if (holes := pattern.match(parts[:end])) is not None:
                yield ".".join(parts[:end]), ".".join(["", *parts[end:]]), holes
