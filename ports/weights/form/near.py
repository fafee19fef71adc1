"""The name that may have been meant: suggestions for messages, in bounded time whatever names a file has.

`difflib` compares two names in a time that grows with the product of their lengths. Only the first `SUGGESTIONS`
problems of a list get one; each is chosen among `CANDIDATES` names, by their first `LONGEST` characters.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Mapping

Shape = tuple[int, ...]
SUGGESTIONS, CANDIDATES, LONGEST = 20, 60, 120


class Near:
    """The tensors that one may have meant.

    Attributes:
        left: how many suggestions may still be made.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes, self.left = shapes, SUGGESTIONS
        self._by_part: dict[str, list[str]] = defaultdict(list)
        self._by_shape: dict[Shape, list[str]] = defaultdict(list)
        for name, shape in shapes.items():
            self._by_shape[shape].append(name)
            for part in _parts(name):
                self._by_part[part].append(name)

    def hint(self, name: str, shape: Shape) -> str:
        """Return `; nearest: NAME SHAPE`: a similar name, of the same shape if there is one; else nothing."""
        if self.left <= 0 or not self.shapes:
            return ""
        self.left -= 1
        same = self._by_shape.get(shape, [])
        chosen = closest(name, self._few(name, same), 0) or closest(name, self._few(name, self.shapes), 0.6)
        return f"; nearest: {chosen} {self.shapes[chosen]}" if chosen is not None else ""

    def _few(self, name: str, names: Collection[str]) -> list[str]:
        """Those that share parts with a name, rare parts before common ones; the first ones where none does."""
        if len(names) <= CANDIDATES:
            return list(names)
        wanted = set(names) if len(names) < len(self.shapes) else self.shapes
        shared: dict[str, float] = defaultdict(float)
        for part in _parts(name):
            found = self._by_part.get(part, [])
            for other in found[: 50 * CANDIDATES]:
                shared[other] += 1 / len(found)  # a rare part of a name is more informative
        few = [other for other in heapq.nlargest(10 * CANDIDATES, shared, key=shared.__getitem__) if other in wanted]
        return few[:CANDIDATES] or list(itertools.islice(names, CANDIDATES))


def closest(name: str, names: Collection[str], cutoff: float) -> str | None:
    """Return the most similar of a few names; None where all are less similar than `cutoff`."""
    short: dict[str, str] = {}
    for other in list(names)[:CANDIDATES]:
        short.setdefault(other[:LONGEST], other)
    found = difflib.get_close_matches(name[:LONGEST], short, n=1, cutoff=cutoff)
    return short[found[0]] if found else None


def _parts(name: str) -> set[str]:
    return set(re.split(r"[._/]", name[:LONGEST]))
